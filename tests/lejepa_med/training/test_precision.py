"""Training in bf16 on a CPU: only where this processor's kernels can be trusted with the run's own shapes."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch.nn.utils.parametrize import register_parametrization

import data_adapters
from lejepa_med.cpu import keep_freed_memory
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import Method
from lejepa_med.training import device
from lejepa_med.training.device import bf16_fault, check_bf16
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.loop import pretrain
from lejepa_med.training.resolve import resolve_archive, resolve_machine
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import build_method
from tests.lejepa_med.runs import interrupted, losses, tiny, weights


def resolved(tmp_path: Path, *, side: int, **train: Any) -> tuple[RunConfig, data_adapters.Adapter]:
    config = tiny(tmp_path, tmp_path / "out", views={"n_global": 2, "n_local": 0, "global_size": side}, train=train)
    config = resolve_archive(resolve_machine(config, device="cpu"), items=48)
    return config, data_adapters.create("images", **config.views.model_dump())


def console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=400), text


def plain_torch_fails(config: RunConfig, adapter: data_adapters.Adapter, *, repeats: int = 40) -> bool:
    """Whether the same bf16 step, again and again beside NaN in freed memory, has gradients that are not the same."""
    module = build_method(config, adapter.spec)
    views = torch.rand(2, 8, 3, adapter.spec.global_size, adapter.spec.global_size)
    first: list[torch.Tensor] | None = None
    for _ in range(repeats):
        held = [torch.full((2**k,), float("nan")) for k in range(8, 23)]
        held.clear()
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(views, None, seed=0, step=0)
        out.loss.backward()
        found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        if first is not None and not all(map(torch.equal, first, found)):
            return True
        first = first or found
    return False


def test_shapes_that_pytorch_computes_wrong_are_trained_in_float32(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 16 px, torch 2.14 reads uninitialised memory in the last stage's weight gradient; at 48 px it does not."""
    monkeypatch.setenv("LEJEPA_CPU_BF16", "on")
    keep_freed_memory()
    config, adapter = resolved(tmp_path, side=48)
    assert config.train.precision == "bf16-mixed"
    assert bf16_fault(config, adapter.spec, batch=4) == ""

    small, adapter = resolved(tmp_path, side=16)
    fault = bf16_fault(small, adapter.spec, batch=8)
    if not fault and not plain_torch_fails(small, adapter):
        pytest.skip("this PyTorch computes small bf16 convolutions right on this processor")
    # the fault shows in nearly, not in really every check of so small a batch
    assert fault or any(bf16_fault(small, adapter.spec, batch=8) for _ in range(5))


OWN = torch.Generator().manual_seed(0)


class Wrong(torch.autograd.Function):
    """The weight as it is; its gradient is right in float32 and something else under autocast."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, how: str) -> torch.Tensor:
        ctx.how, ctx.rough = how, torch.is_autocast_enabled("cpu")
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        if not ctx.rough:
            return grad, None
        tiny = torch.rand(grad.shape, generator=OWN) * grad.abs().max() * 1e-3
        return grad + {"changes": tiny, "elsewhere": -2 * grad, "not finite": grad * float("nan")}[ctx.how], None


class Planted(torch.nn.Module):
    """A parametrization: the layer's weight with a wrong gradient."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return Wrong.apply(weight, self.how)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["changes", "elsewhere", "not finite"])
def test_each_kind_of_fault_is_found_and_told(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEJEPA_CPU_BF16", "on")
    config, adapter = resolved(tmp_path, side=32)

    def planted(*given: Any) -> Method:
        method = build_method(*given)
        register_parametrization(method.encoder.backbone.layer2[0].conv1, "weight", Planted(how))
        return method

    monkeypatch.setattr(device, "build_method", planted)
    shown, text = console()
    found = check_bf16(config, adapter.spec, asked=None, world_size=1, console=shown)
    assert found.train.precision == "32-true"
    assert how in text.getvalue() and "Training in float32" in text.getvalue()
    kept = check_bf16(config, adapter.spec, asked="bf16-mixed", world_size=1, console=shown)
    assert kept.train.precision == "bf16-mixed" and "--train.precision 32-true" in text.getvalue()


def test_a_run_whose_bf16_is_refused_is_the_float32_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEJEPA_CPU_BF16", "off")
    pretrain(tiny(pictures, tmp_path / "plain", train={"epochs": 1}))
    monkeypatch.setenv("LEJEPA_CPU_BF16", "on")
    monkeypatch.setattr(device, "bf16_fault", lambda *_, **__: "the gradient of a test is not finite")
    pretrain(tiny(pictures, tmp_path / "refused", train={"epochs": 1}))
    saved = yaml.safe_load((tmp_path / "refused" / "config.yaml").read_text())
    assert saved["train"]["precision"] == "32-true"
    assert losses(tmp_path / "refused") == losses(tmp_path / "plain")


@pytest.mark.parametrize(("first", "then"), [("off", "on"), ("on", "off")])
def test_a_resumed_run_keeps_its_precision_on_another_processor(
    first: str, then: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and weights as without the interruption, whatever the second processor would choose."""
    monkeypatch.setattr(device, "bf16_fault", lambda *_, **__: "")
    monkeypatch.setenv("LEJEPA_CPU_BF16", first)
    views = {"n_global": 2, "n_local": 0, "global_size": 48}
    pretrain(tiny(pictures, tmp_path / "whole", views=views, train={"epochs": 1}))
    config = tiny(pictures, tmp_path / "cut", views=views, train={"epochs": 1, "checkpoint_minutes": 0})
    interrupted(config, monkeypatch, step=3)
    monkeypatch.setenv("LEJEPA_CPU_BF16", then)
    given = tiny(pictures, tmp_path / "cut", views=views, train={"epochs": 1, "accelerator": "auto"})
    given.train.model_fields_set.discard("accelerator")  # auto: a GPU where there is one
    assert RunFolder(given.out).reopen(given).train.accelerator == "cpu"
    assert pretrain(given, resume=True).finished
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_what_a_resumed_run_may_change_and_what_not(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    exact = {"epochs": 1, "checkpoint_minutes": 0, "precision": "32-true"}
    interrupted(tiny(pictures, out, train=exact), monkeypatch, step=2)
    with pytest.raises(ConfigError, match=r"train\.precision: given bf16-mixed, the run has"):
        pretrain(tiny(pictures, out, train={"precision": "bf16-mixed", "epochs": 1}), resume=True)
    moved = tiny(pictures, out, train={"epochs": 1, "strategy": "fsdp"}, data={"workers": 1})
    assert pretrain(moved, resume=True).finished
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert (saved["data"]["workers"], saved["train"]["accelerator"]) == (0, "cpu")  # as the run began


def test_half_precision_needs_a_gpu(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        pretrain(tiny(pictures, tmp_path / "run", train={"precision": "16-mixed"}))
