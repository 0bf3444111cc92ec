"""The plug-in package of examples/satellite, installed by pip and used by name through the commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tifffile

ROOT = Path(__file__).parents[2]
TINY = (
    "--epochs 1 --views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t "
    "--model.projector-hidden 32 --model.projector-dim 8 --objective.slices 16 "
    "--batch-size 8 --train.accelerator cpu --data.workers 0"
)


def write_patches(folder: Path, count: int = 16) -> Path:
    """Fields of different reflectance in five bands, and one file without its last band."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        fields = np.kron(rng.integers(200, 4000, (4, 4, 5)), np.ones((10, 10, 1))).astype(np.uint16)
        tifffile.imwrite(
            folder / f"T32T{number // 4}_{number:04d}.tif", fields, photometric="minisblack", planarconfig="contig"
        )
    tifffile.imwrite(
        folder / "T32T9_0000.tif", np.ones((40, 40, 4), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    return folder


def test_installed_and_used_by_name(tmp_path):
    source = shutil.copytree(ROOT / "examples" / "satellite", tmp_path / "source")  # a build writes beside its source
    target = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, *install, "--target", str(target), str(source)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])}

    archive = str(write_patches(tmp_path / "archive"))
    commands = (
        ["scan", archive, "--modality", "satellite", "--out", "scan"],
        ["pretrain", archive, "--modality", "satellite", "--out", "run", *TINY.split()],
        ["embed", "run", "scan/manifest.parquet", "--out", "table", "--workers", "0"],
        ["inspect", "scan/manifest.parquet", "--encoder", "run", "-n", "2", "--out", "look"],
    )
    script = f"from lejepa_med.cli import main\nfor command in {commands!r}: main(command)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not five bands" in (tmp_path / "scan" / "rejected.csv").read_text()
    assert "B11, B4, B2 as red, green, blue; 2 more bands are not shown" in (tmp_path / "look/inspect.html").read_text()
    shards = sorted((tmp_path / "table").rglob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert len(rows) == 16
    assert len({row["group"] for row in rows}) == 4


def test_the_adapter_is_short_enough_to_copy():
    lines = (ROOT / "examples" / "satellite" / "lejepa_satellite" / "__init__.py").read_text().splitlines()
    assert len(lines) < 50
