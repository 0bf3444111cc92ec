"""Every method: it trains all its weights, resumes bit for bit, and does with its views what its paper says."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lejepa_med.config import PretrainConfig
from lejepa_med.methods.base import AddedTerms, Method, StepOutput
from lejepa_med.methods.lejepa import SettledLeJEPA
from lejepa_med.methods.lejepa.method import LeJEPAMethod
from lejepa_med.objective import SIGReg, variance_hinge
from lejepa_med.research.teachers.method import DINOMethod, follow, make_teacher, momentum_at
from lejepa_med.training.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from lejepa_med.training.resolve import resolve_archive, resolve_machine
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import build_method
from tests.lejepa_med.methods.tiny_methods import NAMES, SPEC, make_method, make_views
from tests.lejepa_med.runs import tiny

METHODS = ("lejepa", "vicreg", "simclr", "barlow_twins", "byol", "dino", "masked")


def take_step(method: Method, optimizer: torch.optim.Optimizer, name: str, *, step: int, steps: int = 4) -> StepOutput:
    """What the training loop does."""
    torch.manual_seed(step)
    out: StepOutput = method(*make_views(name, seed=step), seed=0, step=step)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    method.after_step(step=step, steps=steps)
    return out


def resolved(method: str, **sections: dict[str, Any]) -> RunConfig:
    masked = method == "masked"
    base: dict[str, dict[str, Any]] = {
        "objective": {"method": method, "slices": 8} | ({"prototypes": 16} if method == "dino" else {}),
        "views": {"n_global": 2, "n_local": 0, "global_size": 64 if masked else 32},
        "model": {"backbone": "test_vit" if masked else "resnet10t", "projector_hidden": 16, "projector_dim": 32},
        "train": {"batch_size": 4},
    }
    base = {name: {**values, **sections.get(name, {})} for name, values in base.items()}
    config = PretrainConfig(archive=Path("a"), out=Path("b"), modality="images", **base)
    return resolve_archive(resolve_machine(config, device="cpu"), items=100)


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_from_settings_train_every_weight(method: str) -> None:
    config = resolved(method)
    side = config.views.global_size
    built = build_method(config, SPEC.__class__(**{**SPEC.__dict__, "global_size": side, "n_local": 0}))
    trained = {name: p for name, p in built.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for step in range(2):
        views = torch.randint(0, 256, (2, 4, 3, side, side), dtype=torch.uint8)
        out = built(views, None, seed=0, step=step)
        optimizer.zero_grad()
        out.loss.backward()
        idle = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
        assert not idle, idle
        optimizer.step()
        built.after_step(step=step, steps=20)
        assert out.loss.isfinite() and out.features.shape == (4, built.encoder.dim)
        assert out.z.shape == (4, config.model.projector_dim)
        assert out.z_views is not None and torch.equal(out.z_views[0], out.z)
        assert not out.z_views.requires_grad and not out.features.requires_grad
        assert all(value.shape == () and not value.requires_grad for value in out.terms.values())
    # after the first step, which opens timm's zero-initialised residual branches; the last bias only moves the batch
    idle = [name for name, p in trained.items() if not p.grad.any() and not name.endswith("projector.layers.6.bias")]
    assert not idle, idle


def test_the_default_method_is_what_it_was() -> None:
    """Same weights for the same seed, same names in a checkpoint, same loss."""
    config = resolved("lejepa")
    method = build_method(config, SPEC)
    assert type(method) is LeJEPAMethod and method.added is None
    assert {name.split(".")[0] for name in method.state_dict()} == {"encoder", "projector"}
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        backbone = timm.create_model("resnet10t", in_chans=3, num_classes=0)
    first = next(iter(backbone.state_dict()))
    assert torch.equal(method.encoder.backbone.state_dict()[first], backbone.state_dict()[first])
    views = make_views("lejepa")[0]
    out = method(views, None, seed=0, step=3)
    z = method.projector(method.encoder(views.flatten(0, 1))).unflatten(0, (2, 6))
    squares = (z.mean(0) - z).square().sum()
    assert isinstance(config.objective, SettledLeJEPA)
    lamb = config.objective.lamb
    loss = (1 - lamb) * (squares / squares.new_full((), z.numel())) + lamb * SIGReg(slices=8)(z, seed=0, step=3)
    assert torch.equal(out.loss, loss)
    assert list(out.terms) == ["invariance", "sigreg"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_from_its_checkpoint_is_the_same_run(name: str, tmp_path: Path) -> None:
    whole = make_method(name)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    for step in range(2):
        take_step(whole, optimizer, name, step=step)
    save_checkpoint(tmp_path, Snapshot(step=2, model=whole.state_dict(), optimizer=optimizer.state_dict()))
    expected = [take_step(whole, optimizer, name, step=step).loss for step in (2, 3)]
    resumed = make_method(name, seed=1)
    again = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    snapshot = load_checkpoint(tmp_path)
    assert snapshot is not None and snapshot.step == 2
    resumed.load_state_dict(snapshot.model)
    again.load_state_dict(snapshot.optimizer)
    got = [take_step(resumed, again, name, step=step).loss for step in (2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in whole.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_under_bf16_the_losses_are_float32_and_near_those_of_float32(name: str, device: str) -> None:
    expected = make_method(name)(*make_views(name), seed=0, step=1)
    method = make_method(name).to(device)
    views = [view if view is None else view.to(device) for view in make_views(name)]
    with torch.autocast(device, torch.bfloat16):
        out = method(*views, seed=0, step=1)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in out.terms.values())
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.1, abs=0.02)


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_teachers_follow_without_gradient(name: str) -> None:
    method = make_method(name)
    teacher = method.target_encoder if name == "byol" else method.teacher_encoder
    before = [p.clone() for p in teacher.parameters()]
    out = method(*make_views(name), seed=0, step=0)
    out.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1)
    method.after_step(step=0, steps=10)
    for old, now, student in zip(before, teacher.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * student)
    method.after_step(step=9, steps=10)
    assert momentum_at(0, steps=10, base=0.9) == pytest.approx(0.9)
    assert momentum_at(9, steps=10, base=0.9) == pytest.approx(0.99755, abs=1e-5)


def test_teachers_have_no_stochastic_depth_and_do_not_share_weights() -> None:
    student = timm.create_model("test_vit", num_classes=0, drop_path_rate=0.5, proj_drop_rate=0.5)
    teacher = make_teacher(student)
    images = torch.rand(2, 3, 160, 160)
    assert torch.equal(teacher(images), teacher(images)) and teacher.training
    assert not torch.equal(student(images), student(images))
    assert not {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    follow(teacher, student, momentum=0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_dino_holds_its_prototypes_for_the_first_hundredth() -> None:
    method = make_method("dino")
    assert isinstance(method, DINOMethod)
    views = make_views("dino")
    method(*views, seed=0, step=0).loss.backward()
    assert method.head.prototypes.grad is not None and not method.head.prototypes.grad.any()
    method.after_step(step=0, steps=50)
    method.zero_grad()
    method(*views, seed=0, step=1).loss.backward()
    assert method.head.prototypes.grad.any()


def test_dino_scores_are_cosines() -> None:
    method = make_method("dino")
    assert isinstance(method, DINOMethod)
    _, scores = method.head(torch.randn(5, 12) * 9, train_prototypes=torch.ones(()))
    with torch.no_grad():
        method.head.prototypes.mul_(7)
    torch.manual_seed(0)
    assert scores.abs().max() <= 1 + 1e-6
    z, scaled = method.head(torch.ones(1, 12), train_prototypes=torch.ones(()))
    expected = nn.functional.cosine_similarity(z, method.head.prototypes)
    torch.testing.assert_close(scaled[0], expected)


def test_sigreg_and_hinge_can_be_added_to_any_loss() -> None:
    for name in ("simclr", "byol", "dino", "masked"):
        plain = make_method(name)(*make_views(name), seed=0, step=1)
        added = AddedTerms(SIGReg(8), sigreg_weight=0.3, hinge_weight=2.0)
        both = make_method(name, added=added)(*make_views(name), seed=0, step=1)
        extra = 0.3 * both.terms["sigreg"] + 2 * both.terms["variance_hinge"]
        torch.testing.assert_close(both.loss, plain.loss + extra)
        assert set(both.terms) == set(plain.terms) | {"sigreg", "variance_hinge"}
    z = torch.randn(3, 6, 4)
    loss, terms = AddedTerms(None, sigreg_weight=0.0, hinge_weight=1.5)(torch.ones(()), {}, z, seed=0, step=0)
    assert loss.item() == pytest.approx(1 + 1.5 * variance_hinge(z).item())
    assert list(terms) == ["variance_hinge"]


@pytest.mark.parametrize(
    ("method", "sections", "terms", "title"),
    [
        ("dino", {"objective": {"prototypes": 16}}, {"cross_entropy", "teacher_entropy"}, "DINO"),
        (
            "masked",
            {"views": {"n_global": 1, "global_size": 64}, "model": {"backbone": "test_vit"}},
            {"prediction", "sigreg"},
            "masked LeJEPA",
        ),
    ],
)
def test_a_whole_run_of_another_method(
    method: str, sections: dict[str, Any], terms: set[str], title: str, pictures: Path, tmp_path: Path
) -> None:
    """Archive to run folder, with the method's own terms in the log."""
    sections = {**sections, "objective": {"method": method, **sections.get("objective", {})}}
    config = tiny(pictures, tmp_path / "run", **sections, train={"epochs": 1})
    assert pretrain(config).finished
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(records) == 6 and terms <= set(records[0])
    assert title in (tmp_path / "run" / "encoder" / "README.md").read_text()
