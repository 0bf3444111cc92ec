"""The servers of `benchmarks.serve`: python -m benchmarks.serve_sides SIDE RUNS PORT THREADS.

All run the same encoder folder with channels-last weights. `plain` and `litserve` decode with OpenCV from memory, as
their documentation would have it, which is less work than our adapters' checks.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SIDE = sys.argv[1] if __name__ == "__main__" else ""


def load(runs: str) -> Any:
    """The encoder, as all sides run it."""
    import torch

    from lejepa_med.models.folder import load_encoder

    encoder = load_encoder(Path(runs) / "run" / "encoder")
    encoder.module.to(memory_format=torch.channels_last)
    return encoder


def decode(content: bytes, size: int) -> Any:
    """A picture as a tensor (3, size, size) uint8: its shorter side scaled to `size`, then the middle."""
    import cv2
    import numpy as np
    import torch

    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    scale = size / min(height, width)
    image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    y, x = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return torch.from_numpy(np.ascontiguousarray(image[y : y + size, x : x + size].transpose(2, 0, 1)))


def ours(runs: str, port: int, threads: int) -> None:
    """`lejepa-med serve` with its defaults."""
    from app.main import run

    run(runs_dir=runs, data_dir=f"{runs}-data", port=port, threads=threads, device="cpu")


def plain(runs: str, port: int, threads: int) -> None:
    """The route that one writes first: decode and run, request by request, on FastAPI's threads."""
    import cv2
    import torch
    import uvicorn
    from fastapi import FastAPI, UploadFile

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    encoder, app = load(runs), FastAPI()
    size = encoder.adapter.spec.embed_size

    @app.post("/v1/embeddings")
    def embed(files: UploadFile) -> dict[str, list[float]]:
        pixels = decode(files.file.read(), size)
        return {"vector": encoder.embed([pixels[None]])[0].tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def bare(runs: str, port: int, threads: int) -> None:
    """No server: for each line BATCH SECONDS on standard input, forward passes on a ready batch, figures as JSON."""
    import torch

    torch.set_num_threads(threads)
    encoder = load(runs)
    size = encoder.adapter.spec.embed_size
    pixels = torch.randint(0, 256, (128, 3, size, size), dtype=torch.uint8)
    for line in sys.stdin:
        batch, seconds = line.split()
        items = [pixels[n : n + 1] for n in range(int(batch))]
        encoder.embed(items)
        times: list[float] = []
        cpu = time.process_time()
        while sum(times) < float(seconds):
            began = time.perf_counter()
            encoder.embed(items)
            times.append(time.perf_counter() - began)
        images = len(times) * len(items)
        figures = {"rate": images / sum(times), "p50": sorted(times)[len(times) // 2]}
        print(json.dumps({**figures, "cpu": (time.process_time() - cpu) / images}), flush=True)


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    {"ours": ours, "plain": plain, "bare": bare}[SIDE](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
