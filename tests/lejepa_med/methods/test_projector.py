"""The projector's layers and its refusals."""

import pytest
import torch
from torch import nn

from lejepa_med.methods.base import Projector


def test_default_is_linear_batchnorm_relu_twice_then_linear() -> None:
    layers = list(Projector(512).layers)
    expected = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == expected
    widths = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert widths == [(512, 2048), (2048, 2048), (2048, 64)]


def test_last_layer_is_plain_so_any_mean_and_scale_can_be_learnt() -> None:
    projector = Projector(4, hidden=8, depth=2, out_dim=3)
    with torch.no_grad():
        last = projector.layers[-1]
        last.weight *= 50
        last.bias += 7
    z = projector(torch.randn(64, 4))
    assert z.shape == (64, 3)
    assert z.std() > 5
    assert z.min() < 0


def test_views_share_one_batch_normalisation() -> None:
    """A view that is shifted as a whole keeps its shift when all views are concatenated, and loses it alone."""
    torch.manual_seed(0)
    projector = Projector(4, hidden=32, out_dim=2)
    view = torch.randn(32, 4)
    shifted = view + 3
    together = projector(torch.cat([view, shifted]))
    apart = (projector(view), projector(shifted))
    torch.testing.assert_close(apart[0], apart[1], atol=1e-4, rtol=1e-4)
    assert (together[:32] - together[32:]).abs().mean() > 0.1


@pytest.mark.parametrize("shape", [(2, 8, 16), (8, 15), (16,)])
def test_wrong_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"views \* batch, 16"):
        Projector(16, hidden=8)(torch.zeros(shape))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="depth=0"):
        Projector(16, depth=0)
