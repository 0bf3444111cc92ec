"""The device that trains: which one, its arithmetic, and whether bf16 can be trusted on this CPU."""

import os

import lightning_fabric as lightning
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from data_adapters.base import Spec
from lejepa_med.config import Precision, PretrainConfig
from lejepa_med.cpu import keep_freed_memory
from lejepa_med.distributed import alone, ranks_here
from lejepa_med.errors import ConfigError
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.sharding import fsdp_strategy
from lejepa_med.training.state import build_method

REPEATS = 6  # of the bf16 step: four found the fault in all but 2 of 45 trials (ResNets at 16 px, torch 2.14, AVX512)
ALIKE = 0.7  # cosine of a weight's gradients in bf16 and float32; of eleven sound architectures it was 0.89 or more


def device_of(config: PretrainConfig) -> str:
    """Where the run would train here: 'cpu' or 'cuda'.

    Raises:
        ConfigError: a GPU is asked for, and there is none.
    """
    wanted = config.train.accelerator
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "PyTorch sees no CUDA device.",
            remedy="Use --train.accelerator cpu, or see what lejepa-med doctor says about the GPU.",
        )
    return wanted


def make_fabric(config: PretrainConfig) -> lightning.Fabric:
    """Devices and precision; under torchrun, one process each of its ranks."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = ranks_here()
    accelerator = device_of(config)
    precision = config.train.precision or best_precision(accelerator)
    if accelerator == "cpu" and precision == "16-mixed":
        raise ConfigError(
            "16-mixed precision needs a GPU.",
            remedy="Continue this run on a machine with one, or start a new run with --train.precision 32-true.",
        )
    if accelerator == "cpu":
        keep_freed_memory()
    fabric = lightning.Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="auto" if world == 1 else fsdp_strategy(world) if config.train.strategy == "fsdp" else "ddp",
        precision=precision,
    )
    fabric.launch()
    return fabric


def best_precision(device: str) -> Precision:
    """bf16 where the device computes in it; else fp16 with scaled gradients (GPUs before Ampere), else float32."""
    if device == "cpu":
        return "bf16-mixed" if cpu_has_bf16() else "32-true"
    # emulated bf16, which PyTorch counts as support by default, is slower than fp16
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def cpu_has_bf16() -> bool:
    """Whether bf16 arithmetic has instructions here (AVX512-BF16, AMX); emulated, it is far slower than float32.

    LEJEPA_CPU_BF16=on or off answers in the processor's place, so that the tests can run as on another one.
    """
    forced = os.environ.get("LEJEPA_CPU_BF16")
    if forced is not None:
        return forced == "on"
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def check_bf16(
    config: RunConfig, spec: Spec, *, asked: Precision | None, world_size: int, console: Console
) -> RunConfig:
    """Resolved settings with float32 in place of bf16 where this CPU's bf16 cannot be trusted; the console says so.

    Args:
        config: resolved settings; `train.accelerator` names the device.
        spec: sizes and channels of the adapter's views.
        asked: the precision that the user gave; it is kept, with a warning.
        world_size: processes that share a batch.
        console: where a fault is told.
    """
    train = config.train
    if train.accelerator != "cpu" or train.precision != "bf16-mixed":
        return config
    fault = bf16_fault(config, spec, batch=max(2, train.batch_size // (train.accumulate * world_size)))
    if not fault:
        return config
    fault = f"On this processor and for these views bf16 cannot be trusted: {fault}."
    if asked is not None:
        advice = "Training goes on in bf16, as asked; --train.precision 32-true avoids it."
        console.print(f"[yellow]warning[/yellow] {fault} {advice}", soft_wrap=True, highlight=False)
        return config
    console.print(f"{fault} Training in float32 (32-true).", soft_wrap=True, highlight=False)
    return config.model_copy(update={"train": train.model_copy(update={"precision": "32-true"})})


def bf16_fault(config: RunConfig, spec: Spec, *, batch: int) -> str:
    """Why a bf16 step on this CPU cannot be trusted with a run's own model and shapes; "" where it can.

    PyTorch's bf16 convolutions read uninitialised memory for small feature maps (pytorch#68868, #109985), so weight
    gradients change from call to call and now and then are not finite. One step on random views is therefore compared
    with float32, and with itself while freed memory is full of NaN.

    Args:
        config: resolved settings.
        spec: sizes and channels of the adapter's views.
        batch: samples that one process sees at a time.
    """
    draw = torch.Generator().manual_seed(config.train.seed)
    shapes = [(spec.n_global, spec.global_size)] + ([(spec.n_local, spec.local_size)] if spec.n_local else [])
    views = [torch.rand(n, batch, spec.channels, *[size] * spec.dims, generator=draw) for n, size in shapes]
    module = build_method(config, spec)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 and not parameter.any():
                parameter.fill_(0.5)  # scales that start at zero would hide the gradients of their whole branch
    with alone():  # one rank checks while the others wait for it
        exact = _gradients(module, views, bf16=False)
        rough = [_gradients(module, views, bf16=True) for _ in range(REPEATS)]
    for name, expected in exact.items():
        found = [gradients[name] for gradients in rough]
        if not all(gradient.isfinite().all() for gradient in found):
            return f"the gradient of {name} is not finite"
        if not all(torch.equal(found[0], gradient) for gradient in found):
            return f"the gradient of {name} changes from call to call"
        alike = float(cosine_similarity(found[0].flatten(), expected.flatten(), dim=0))
        if expected.ndim > 1 and alike < ALIKE:  # those of biases before a norm are zero but for rounding
            return f"the gradient of {name} points elsewhere than in float32 (cosine {alike:.2f})"
    return ""


def _gradients(module: nn.Module, views: list[Tensor], *, bf16: bool) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    _fill_freed_memory(module)
    torch.manual_seed(0)  # of stochastic depth
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = module(views[0], views[1] if len(views) > 1 else None, seed=0, step=0)
    out.loss.backward()
    return {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}


def _fill_freed_memory(module: nn.Module) -> None:
    """Fill memory with NaN and free it, so that what is allocated next holds NaN wherever it is not written."""
    sizes = [p.numel() for p in module.parameters()] + [2**k for k in range(10, 24)]
    held = [torch.full((size,), float("nan"), dtype=d) for size in sizes for d in (torch.float32, torch.bfloat16)]
    held.clear()
