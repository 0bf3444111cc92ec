"""The masked method: masks, predictors, and one encoder whose context branch never sees a hidden patch."""

import numpy as np
import pytest
import torch

from lejepa_med.errors import ConfigError
from lejepa_med.methods.masked.method import (
    LEAST_CONTEXT,
    Masks,
    MLPPredictor,
    TransformerPredictor,
    draw_masks,
    patch_grid,
    sincos_positions,
    take,
    visible_features,
)
from tests.lejepa_med.methods.tiny_methods import Backbone, make_encoder, make_method, make_views, make_vit


def draw(kind: str = "multi_block", **settings: object) -> Masks:
    base = {"grid": (14, 14), "views": 2, "batch": 8, "ratio": 0.6, "seed": 0, "step": 5}
    return draw_masks(kind, **{**base, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (14, 14)])
@pytest.mark.parametrize("kind", ["multi_block", "random_token"])
def test_no_patch_is_both_hidden_and_visible(kind: str, grid: tuple[int, int]) -> None:
    for step in range(20):
        context, target = draw(kind, grid=grid, step=step)
        assert context.shape[:2] == target.shape[:2] == (2, 8)
        assert context.shape[2] >= LEAST_CONTEXT * grid[0] * grid[1]
        assert context.min() >= 0 and max(context.max(), target.max()) < grid[0] * grid[1]
        for seen, hidden in zip(context.reshape(16, -1), target.reshape(16, -1), strict=True):
            assert not set(seen) & set(hidden)
            assert len(set(seen)) == len(seen) and (np.diff(seen) > 0).all()


def test_blocks_have_the_sizes_of_i_jepa() -> None:
    shares, aspects = [], []
    for step in range(60):
        blocks = draw(step=step).target.reshape(16 * 4, -1)
        rows, columns = np.divmod(blocks, 14)
        height = rows.max(1) - rows.min(1) + 1
        width = columns.max(1) - columns.min(1) + 1
        assert (height * width == blocks.shape[1]).all()  # each is a full rectangle
        assert len({(int(h), int(w)) for h, w in zip(height, width, strict=True)}) == 1  # of one size a step
        shares.append(blocks.shape[1] / 196)
        aspects.append(height[0] / width[0])
    assert 0.12 < min(shares) and max(shares) < 0.23  # .15 to .2, with sides rounded to patches
    assert 0.6 < min(aspects) < 0.85 and 1.25 < max(aspects) < 1.8
    places = {tuple(block) for block in draw().target.reshape(64, -1)}
    assert len(places) > 20


def test_random_tokens_hide_the_given_share_and_all_others_are_visible() -> None:
    context, target = draw("random_token", ratio=0.75)
    assert target.shape[2] == 147 and context.shape[2] == 49
    assert draw("random_token", ratio=0.999, grid=(4, 4)).context.shape[2] == 1
    assert len({tuple(row) for row in target.reshape(16, -1)}) == 16


@pytest.mark.parametrize("kind", ["multi_block", "random_token"])
def test_masks_are_a_function_of_seed_step_and_place_in_the_global_batch(kind: str) -> None:
    whole = draw(kind)
    assert all(np.array_equal(a, b) for a, b in zip(whole, draw(kind), strict=True))
    assert not np.array_equal(whole.target[..., :1], draw(kind, step=6).target[..., :1])
    assert not np.array_equal(whole.target[..., :1], draw(kind, seed=1).target[..., :1])
    for rank in range(4):
        share = draw(kind, batch=2, rank=rank, world_size=4)
        assert all(np.array_equal(a[:, rank::4], b) for a, b in zip(whole, share, strict=True))


def test_small_grids_and_unknown_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 x 4 patches, got 3 x 14"):
        draw(grid=(3, 14))
    with pytest.raises(ValueError, match="no mask 'stripes'"):
        draw("stripes")


@pytest.mark.parametrize("settings", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
def test_all_patches_visible_is_the_encoder_itself(settings: dict[str, object]) -> None:
    model = make_vit(**settings).eval()
    images = torch.randn(2, 3, 32, 32)
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(visible_features(model, images, every), model.forward_features(images))


def test_hidden_pixels_do_not_reach_the_context() -> None:
    model = make_vit().eval()
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., :8, :8] += 1  # patch 0
    context = torch.tensor([[3, 7, 12]])
    assert torch.equal(visible_features(model, images, context), visible_features(model, changed, context))
    seen = torch.tensor([[0, 7, 12]])
    assert not torch.equal(visible_features(model, images, seen), visible_features(model, changed, seen))


def test_gradient_flows_through_both_branches() -> None:
    """No stop-gradient: with the predictor held off either branch, the encoder's gradient changes."""

    def grad(*, cut: str) -> torch.Tensor:
        method = make_method("masked")
        vit = method.encoder.backbone
        forward = vit.forward_features
        if cut == "target":
            vit.forward_features = lambda images: forward(images).detach()
        elif cut == "context":
            vit._pos_embed = lambda x, original=vit._pos_embed, calls=[]: (
                original(x) if not calls and not calls.append(1) else original(x).detach()
            )
        method(*make_views("masked"), seed=0, step=0).loss.backward()
        gradient = vit.patch_embed.proj.weight.grad
        return torch.zeros(1) if gradient is None else gradient

    both, context_only, target_only = (grad(cut=cut) for cut in ("", "target", "context"))
    assert context_only.any() and target_only.any()
    torch.testing.assert_close(both, context_only + target_only, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "predictor", [MLPPredictor(16, grid=(4, 4)), TransformerPredictor(16, grid=(4, 4), width=32, depth=1)]
)
def test_predictors_answer_by_position(predictor: torch.nn.Module) -> None:
    tokens, pooled = torch.randn(2, 1 + 5, 16), torch.randn(2, 16)
    context = torch.tensor([[0, 1, 2, 3, 4]] * 2)
    target = torch.tensor([[9, 12, 9], [12, 15, 9]])
    whole, guess = predictor(tokens, pooled, context, target)
    assert whole.shape == (2, 16) and guess.shape == (2, 3, 16)
    torch.testing.assert_close(guess[0, 0], guess[0, 2])  # the same place twice
    assert not torch.allclose(guess[0, 0], guess[0, 1], atol=1e-4)
    assert not torch.allclose(guess[0, 1], guess[1, 0], atol=1e-4)  # the same place, another image
    other = predictor(tokens.flip(2), pooled.flip(1), context, target)
    assert not torch.allclose(other[0], whole, atol=1e-4)


def test_positions_are_distinct_and_near_places_are_alike() -> None:
    table = sincos_positions((4, 6), 32)
    assert table.shape == (24, 32)
    similar = table @ table.T
    assert (similar.diagonal()[:, None] - similar + 1e9 * torch.eye(24) > 1e-3).all()
    assert similar[0, 1] > similar[0, 5] and similar[0, 6] > similar[0, 18]
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((4, 4), 30)
    with pytest.raises(ValueError, match="multiple of 32"):
        TransformerPredictor(16, grid=(4, 4), width=40)


def test_the_value_is_that_of_the_branches_put_together_by_hand() -> None:
    method = make_method("masked-mlp").eval()  # evaluation: batch normalisation is then the same for every row
    views = make_views("masked")[0]
    out = method(views, None, seed=3, step=2)
    vit = method.encoder.backbone
    images = method.encoder.normalize(views.flatten(0, 1))
    masks = draw_masks("random_token", grid=(4, 4), views=2, batch=6, ratio=0.6, seed=3, step=2)
    context, target = (torch.from_numpy(m.reshape(12, -1)) for m in masks)
    tokens = vit.forward_features(images)
    seen = visible_features(vit, images, context)
    whole_guess, guess = method.predictor(seen, seen[:, 0], context, target)
    projector = method.projector
    z_whole, z_tokens = projector(tokens[:, 0]), projector(take(tokens[:, 1:], target).flatten(0, 1))
    prediction = (
        (z_whole - projector(whole_guess)).square().mean() + (z_tokens - projector(guess.flatten(0, 1))).square().mean()
    ) / 2
    places = z_tokens.view(2, 6, -1, 4).transpose(1, 2).flatten(0, 1)
    sigreg = method.regularizer
    regularizer = (sigreg(z_whole.view(2, 6, 4), seed=3, step=2) + sigreg(places, seed=3, step=2)) / 2
    torch.testing.assert_close(out.terms["prediction"], prediction)
    torch.testing.assert_close(out.terms["sigreg"], regularizer)
    torch.testing.assert_close(out.loss, 0.9 * prediction + 0.1 * regularizer)
    torch.testing.assert_close(out.features, method.encoder(views[0]))


def test_other_encoders_and_local_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be hidden"):
        patch_grid(make_encoder(Backbone()))
    with pytest.raises(ValueError, match="global views only"):
        make_method("masked")(*make_views("lejepa"), seed=0, step=0)
