"""Which settings of an encoder's forward pass pay: memory format, bfloat16, torch.compile.

    python -m benchmarks.serve_forward [--device cpu|cuda] [--threads 1] [--rounds 5] [--compile] [--out FILE]

Random weights, random pixels; all settings in turns. On a CPU the thread's CPU time is taken, which other work on the
machine disturbs less than the clock, so run it with one thread there; on a GPU the clock, synchronised.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.hardware import cpu_name, publish

CASES = (("resnet18", 64), ("resnet50", 224), ("vit_small_patch16_224", 224))
BATCHES = (1, 8, 32)


def sides(model: nn.Module, device: str, *, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """The forward passes to compare, by name; the first is PyTorch's default."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def bf16(pixels: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            found: Tensor = last(pixels)
        return found

    found: dict[str, Any] = {"contiguous": model, "channels-last": last, "channels-last, bf16": bf16}
    if compiled:
        found["channels-last, compiled"] = torch.compile(copy.deepcopy(last), dynamic=True)
    return found


def timed(run: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """Milliseconds an image."""
    on_cpu = pixels.device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    wait: Callable[[], object] = nullcontext if on_cpu else torch.cuda.synchronize
    wait()
    began = clock()
    run(pixels)
    wait()
    return 1e3 * (clock() - began) / len(pixels)


@torch.inference_mode()
def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which takes minutes")
    parser.add_argument("--backbones", nargs="+", default=[name for name, _ in CASES])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    lines = [
        "# Settings of a forward pass",
        "",
        f"{date.today().isoformat()}. {name}, {args.threads} thread(s), torch {torch.__version__}. Milliseconds an "
        f"image ({'CPU time' if args.device == 'cpu' else 'clock'}), median of {args.rounds} rounds, all in turns. "
        "Distance: |v - v0| / |v0| to the first row's vectors.",
        "",
        "| encoder | batch | setting | ms an image | time over contiguous | distance |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for backbone, size in CASES:
        if backbone not in args.backbones:
            continue
        torch.manual_seed(0)
        model = timm.create_model(backbone, num_classes=0).eval().to(args.device)
        runs = sides(model, args.device, compiled=args.compile)
        for batch in BATCHES:
            pixels = torch.rand(batch, 3, size, size).to(args.device)
            first = model(pixels).float()
            away = {key: float((run(pixels).float() - first).norm() / first.norm()) for key, run in runs.items()}
            times: dict[str, list[float]] = {key: [] for key in runs}
            for _ in range(args.rounds):
                for key, run in runs.items():
                    times[key].append(timed(run, pixels))
            base = statistics.median(times["contiguous"])
            for key, found in times.items():
                middle = statistics.median(found)
                lines.append(f"| {backbone} | {batch} | {key} | {middle:.2f} | {middle / base:.2f} | {away[key]:.1e} |")
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
