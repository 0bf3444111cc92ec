"""Images per second of a whole pretraining run, against the bare encoder and against three other libraries.

    python -m benchmarks.train --archive DIR --out benchmarks/results/train-cpu.md
    python -m benchmarks.train --peer-python /path/to/venv/bin/python --out benchmarks/results/train-cpu.md
    python -m benchmarks.train --backbone vit_small_patch16_224 --size 224 --n-global 2 --batch 256 --workers 14 \
        --precision bf16-mixed --steps 200

All sides train on the same files with the same backbone, number, sizes and crop areas of views, batch, precision and
loader workers. Each runs in a process of its own, the sides in turns, `--rounds` times; wall and CPU time are taken
over `--steps` optimiser steps after `--warmup` (benchmarks/train_window.py says how). So that no side pays for the ends
of epochs, the archive is a folder of links which repeat the files until one epoch outlasts the window. Starting and the
scan lie before the window, the last checkpoint behind it; a checkpoint on the way (by default every 5 minutes) counts
where the window is that long.

| side | what runs |
|---|---|
| bare-encoder | our encoder, forward and backward, on one batch that lies ready on the device |
| bare | the same with the projector |
| views | our loader alone: reading, augmenting, collating |
| ours | `lejepa_med.training.loop.pretrain`, the run of the command line, with its logs |
| lightly, lightly-train, stable-pretraining | benchmarks/peers, as each documents its loop |

The three libraries are no dependency of this package: `pip install lightly lightly-train stable-pretraining psutil`
into an environment of your choice and name its interpreter by --peer-python (LightlyTrain is under the AGPL, the other
two are MIT; each runs in a process of its own). A library that is not there is reported as not installed. They get no
network: events, hubs and update checks are switched off by their environment variables.
Without --archive, JPEG files of noise at several scales are made.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import data_adapters
from benchmarks.train_report import page
from benchmarks.train_window import Settings
from data_adapters.files import walk
from data_adapters.registry import load_class
from lejepa_med.models.architectures import is_convolutional

ROOT = Path(__file__).resolve().parent.parent
OURS = ("bare-encoder", "bare", "views", "ours")
PEERS = {
    "lightly": "benchmarks.peers.lightly_loop",
    "lightly-train": "benchmarks.peers.lightly_train_run",
    "stable-pretraining": "benchmarks.peers.stable_pretraining_run",
}
PILLOW = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # what every peer opens
OFFLINE = {
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


def make_files(folder: Path, *, count: int, side: int) -> Path:
    """JPEG files of `side` pixels: noise at several scales, so that decoding costs what it does for photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.zeros((side, side, 3), np.float32)
        for cells, weight in ((4, 1.0), (16, 0.5), (64, 0.25), (side, 0.06)):
            coarse = rng.normal(size=(cells, cells, 3)).astype(np.float32)
            image += weight * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(128 + 60 * image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:04}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


def link_files(archive: Path, folder: Path, *, modality: str, images: int) -> Path:
    """A flat folder of `images` links to the archive's files, evenly chosen or repeated."""
    suffixes = sorted(load_class(modality).suffixes, key=len, reverse=True)
    files = [path.resolve() for path in walk(archive) if path.name.lower().endswith(tuple(suffixes))]
    if not files:
        raise SystemExit(f"No file of {archive} is one of {', '.join(suffixes)}.")
    if len(files) > images:
        files = [files[k] for k in np.linspace(0, len(files) - 1, images).astype(int)]
    folder.mkdir(parents=True)
    for number, path in enumerate(islice(cycle(files), images)):
        suffix = next(suffix for suffix in suffixes if path.name.lower().endswith(suffix))
        (folder / f"{number:07}{suffix}").symlink_to(path)
    return folder


def measure(side: str, settings: Settings, *, python: str, scratch: Path, limit: float) -> dict[str, Any]:
    """One window of one side in a fresh process, which is ended, workers and all, once it has written its figures."""
    out = Path(settings.out)
    out.mkdir(parents=True)
    settings.write(out / "settings.json")
    result = out / "result.json"
    module = ["-m", "benchmarks.train_ours"] if side in OURS else ["-m", PEERS[side]]
    command = [python, *module, str(out / "settings.json"), str(result), side]
    caches = {"LIGHTLY_TRAIN_CACHE_DIR": str(scratch / "lightly-train"), "SPT_CACHE_DIR": str(scratch / "spt")}
    environment = {**os.environ, **OFFLINE, **caches}
    log = scratch / f"{side}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    started = time.perf_counter()
    try:
        while not result.exists() and process.poll() is None and time.perf_counter() - started < limit:
            time.sleep(0.2)
        ended = process.poll() is not None
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended by themselves
        process.wait()
    if result.exists():
        return {"side": side, **json.loads(result.read_text())}
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return {"side": side, "failed": (lines or ["no output"])[-1][:200] if ended else f"not done after {limit:.0f} s"}


def settings_of(args: argparse.Namespace, archive: Path) -> Settings:
    """What all sides have in common; areas are those of our adapter where it has them."""
    options = {"recipe": "natural"} if args.modality == "images" else {}
    options |= json.loads(args.options)
    chosen = getattr(data_adapters.create(args.modality, **options), "options", None)
    cnn = is_convolutional(args.backbone)
    return Settings(
        archive=str(archive),
        out="",
        modality=args.modality,
        options=options,
        backbone=args.backbone,
        drop_path=0.0 if cnn else 0.1,
        n_global=args.n_global,
        n_local=args.n_local,
        size=args.size,
        local_size=args.local_size,
        global_area=getattr(chosen, "global_area", (0.3, 1.0)),
        local_area=getattr(chosen, "local_area", (0.05, 0.3)),
        hidden=args.hidden,
        dim=64,
        slices=args.slices or (1024 if args.accelerator == "cuda" else 256),
        batch=args.batch,
        workers=args.workers,
        precision=args.precision,
        accelerator=args.accelerator,
        lr=2e-3 if cnn else 5e-4,
        weight_decay=5e-4 if cnn else 5e-2,
        warmup=args.warmup,
        steps=args.steps,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="folder with images; without it, files are made")
    parser.add_argument("--made", type=int, nargs=2, default=(256, 512), metavar=("FILES", "PIXELS"))
    parser.add_argument("--modality", default="images", help="our adapter; peers open the same files as pictures")
    parser.add_argument("--options", default="{}", help="JSON options of our adapter")
    parser.add_argument("--backbone", default="resnet18", help="timm name")
    parser.add_argument("--size", type=int, default=64, help="side of global views, pixels")
    parser.add_argument("--local-size", type=int, default=96, help="side of local views, pixels")
    parser.add_argument("--n-global", type=int, default=4, choices=range(2, 17), metavar="2..16")
    parser.add_argument("--n-local", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=2048, help="width of the projector")
    parser.add_argument("--slices", type=int, help="directions of SIGReg; default 256 on a CPU, 1024 on a GPU")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="loader processes of every side")
    parser.add_argument("--precision", default="bf16-mixed" if gpu else "32-true")
    parser.add_argument("--accelerator", default="cuda" if gpu else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=60, help="of the window")
    parser.add_argument("--warmup", type=int, default=10, help="steps before it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the other libraries")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for one side and round")
    parser.add_argument("--out", type=Path, help="Markdown file to write; every window goes beside it as .jsonl")
    return parser.parse_args()


def main() -> None:
    """Measure all sides in turns, print one JSON line a window, and then the page."""
    args = arguments()
    windows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-train-") as folder:
        scratch = Path(folder)
        archive = args.archive or make_files(scratch / "made", count=args.made[0], side=args.made[1])
        settings = settings_of(args, scratch / "files")
        link_files(archive, scratch / "files", modality=args.modality, images=settings.all_steps * args.batch)
        readable = all(path.suffix in PILLOW for path in (scratch / "files").iterdir())
        gone: set[str] = set()  # sides that cannot run here; asked once
        for number in range(args.rounds):
            turn = number % len(args.sides)
            for side in (*args.sides[turn:], *args.sides[:turn]):
                if side in gone:
                    continue
                if side in PEERS and not readable:
                    found: dict[str, Any] = {"side": side, "failed": "cannot read these files"}
                else:
                    mine = Settings(**{**vars(settings), "out": str(scratch / f"{number}-{side}")})
                    python = args.peer_python if side in PEERS else sys.executable
                    found = measure(side, mine, python=python, scratch=scratch, limit=args.limit)
                if "missing" in found or "failed" in found:
                    gone.add(side)
                windows.append({"round": number, **found})
                print(json.dumps(windows[-1]), flush=True)
    text = page(settings, windows, archive=args.archive, made=args.made, rounds=args.rounds)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        args.out.with_suffix(".jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))


if __name__ == "__main__":
    main()
