"""scan and inspect settle open settings as pretrain does: the same samples, rows, preprocessing and views."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.archive import open_archive
from lejepa_med.cli import main
from lejepa_med.data.dataset import ViewDataset
from lejepa_med.display import choose_channels, picture, planes
from lejepa_med.inspection import command
from lejepa_med.inspection.record import look_at
from tests.conftest import write_pictures
from tests.data import galaxy, mri
from tests.data.histology import he_picture, write_pyramid

QUICK = (
    "--model.projector-hidden 32 --model.projector-dim 8 --objective.slices 16 --epochs 0 --data.workers 0 "
    "--monitor.sample 16"
).split()


def damaged_pictures(folder: Path) -> Path:
    """Twelve pictures, of which the second looks whole and cannot be decoded."""
    write_pictures(folder, count=12)
    whole = (folder / "0001.png").read_bytes()
    (folder / "0001.png").write_bytes(whole[: len(whole) // 2])
    return folder


def galaxies(folder: Path) -> Path:
    folder.mkdir()
    for number in range(6):
        galaxy.write_cube(folder / f"{number}.fits", galaxy.source(64, seed=number), ra=150.0 + number)
    return folder


def volumes(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        mri.write_nifti(folder / f"sub-{number}_T1w.nii.gz", mri.phantom(seed=number))
    return folder


def slides(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        pixels, _ = he_picture(width=1024, height=1024, seed=number, blobs=16)
        write_pyramid(folder / f"{number}.tif", pixels)
    return folder


CASES: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "pictures": ("images", damaged_pictures, ["--backbone", "resnet10t"]),
    "split": ("images", lambda folder: write_pictures(folder, count=16),
              ["--catalog", "labels.csv", "--split", "train", "--seed", "3"]),
    "options": ("images", lambda folder: write_pictures(folder, count=12),
                ["--views.n-global", "3", "--views.global-size", "48", "-o", "recipe=natural"]),
    "multi-crop": ("images", lambda folder: write_pictures(folder, count=12),
                   ["--backbone", "vit_tiny_patch16_224", "--views.global-size", "32"]),
    "galaxies": ("galaxy", galaxies, []),
    "volumes": ("mri", volumes, []),
    "cubes": ("mri3d", volumes, ["--views.global-size", "32"]),
    "slides": ("histology", slides, []),
}  # fmt: skip


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Adapter, Manifest, int]]:
    """What inspect has looked at: adapter, manifest and seed."""
    seen: list[tuple[Adapter, Manifest, int]] = []
    real = command.inspect

    def inspect(adapter: Adapter, manifest: Manifest, *arguments: Any, **named: Any) -> Any:
        seen.append((adapter, manifest, named["seed"]))
        return real(adapter, manifest, *arguments, **named)

    monkeypatch.setattr(command, "inspect", inspect)
    return seen


LONG = ("options", "multi-crop", "galaxies", "cubes")


@pytest.mark.parametrize("case", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in CASES])
def test_inspect_shows_the_views_of_training(
    case: str,
    tmp_path: Path,
    shown: list[tuple[Adapter, Manifest, int]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modality, make, flags = CASES[case]
    root = make(tmp_path / "a")
    monkeypatch.chdir(root)
    common = [str(root), "--modality", modality, *flags, *QUICK]
    main(["pretrain", *common, "--out", str(tmp_path / "run")])
    training = capsys.readouterr().err
    main(["inspect", *common, "--out", str(tmp_path / "look")])  # the same command with another word
    manifest, adapter = open_archive(tmp_path / "run" / "manifest.parquet")
    seed = int(flags[flags.index("--seed") + 1]) if "--seed" in flags else 0
    (looked,) = shown
    assert looked[0].describe() == adapter.describe() and looked[2] == seed
    assert looked[1].rows.equals(manifest.rows)
    dataset = ViewDataset(manifest, adapter, seed=seed)
    for row in range(len(manifest)):
        look = look_at(*looked[:2], row, seed=seed)
        first = dataset[0, row, 0].views
        assert len(look.views) == len(first) == adapter.spec.n_views
        channels = choose_channels(adapter.spec.channels, _bands(manifest, row))
        for view, tensor in zip(look.views, first, strict=True):
            np.testing.assert_array_equal(view.image, picture(planes(tensor), channels))

    # scan counts what training draws, and what it hands on leads to the same views
    main(["scan", *common, "--out", str(tmp_path / "scan")])
    counted = capsys.readouterr().err
    samples = sum(manifest.column("samples"))
    for text in (training, counted):
        told = re.search(r"samples an epoch\s*│\s*([\d,]+)", text)
        assert told is not None and int(told[1].replace(",", "")) == samples
    assert f"an epoch of {min(64, samples)} samples each" in counted
    scanned = ["inspect", str(tmp_path / "scan" / "manifest.parquet"), "--out", str(tmp_path / "again")]
    settings = [flag for flag in flags if not flag.startswith("labels.csv") and flag != "--catalog"]
    main([*scanned, *settings])
    assert shown[1][0].describe() == adapter.describe() and shown[1][1].rows.equals(manifest.rows)
    main(["inspect", str(tmp_path / "run" / "manifest.parquet"), "--out", str(tmp_path / "of-run")])
    assert shown[2][0].describe() == adapter.describe() and shown[2][1].rows.equals(manifest.rows)


def _bands(manifest: Manifest, row: int) -> list[str]:
    bands = manifest.record(row).meta.get("bands", ())
    return bands.split(",") if isinstance(bands, str) else list(bands)


def test_short_names_mean_the_same(tmp_path: Path, shown: list[tuple[Adapter, Manifest, int]]) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    table = str(root / "labels.csv")
    common = ["inspect", str(root), "--modality", "images", "--out", str(tmp_path / "look")]
    main([*common, "--catalog", table, "-o", "recipe=natural", "--seed", "5"])
    main([*common, "--data.catalog", table, "--data.options", '{"recipe": "natural"}', "--train.seed", "5"])
    assert shown[0][0].describe() == shown[1][0].describe() and shown[0][2] == shown[1][2] == 5
    assert shown[0][1].rows.equals(shown[1][1].rows) and shown[0][1].column("label")[0]


def test_scan_counts_the_samples_of_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "a", count=16)
    scan = ["scan", str(root), "--modality", "images", "--out", str(tmp_path / "scan")]
    scan += ["--catalog", str(root / "labels.csv")]
    main(scan)
    assert "16 (train 12, val 4)" in capsys.readouterr().err
    main([*scan, "--split", "val"])
    shown = capsys.readouterr().err
    assert "4 of the split val (16 in all)" in shown and "1 step an epoch of 4 samples each" in shown


def test_scan_says_that_pretrain_will_refuse_mixed_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = galaxies(tmp_path / "a")
    galaxy.write_cube(root / "x.fits", galaxy.source(64, bands="gr"), bands="gr")
    main(["scan", str(root), "--modality", "galaxy", "--out", str(tmp_path / "scan")])
    shown = " ".join(capsys.readouterr().err.split())
    said = "The archive mixes bands: g,r,z in 6 records; g,r in 1 record. Set the option bands"
    assert f"pretrain will refuse this: {said}" in shown
    with pytest.raises(SystemExit):
        main(["pretrain", str(root), "--modality", "galaxy", "--out", str(tmp_path / "run"), *QUICK])
    assert said in " ".join(capsys.readouterr().err.split())
    options = ["-o", "bands=g,r"]
    main(["scan", str(root), "--modality", "galaxy", "--out", str(tmp_path / "scan"), *options])
    assert "pretrain will train" in capsys.readouterr().err


def test_an_encoder_of_pictures_says_what_flux_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = galaxy.write_pictures(tmp_path / "a", 4).parent
    main(["pretrain", str(root), "--modality", "galaxy", "--out", str(tmp_path / "run"), *QUICK])
    flux = galaxies(tmp_path / "flux")
    with pytest.raises(SystemExit):
        main(["embed", str(tmp_path / "run"), str(flux), "--out", str(tmp_path / "table")])
    said = " ".join(capsys.readouterr().err.split())
    assert "holds flux (FITS or HDF5), but the encoder, or the option kind, is for pictures" in said
    assert "choose the modality" not in said and "Use an encoder that was pretrained on" in said


def test_numbers_have_their_grammar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "a", count=3)
    shutil.copy(root / "0000.png", root / "copy.png")
    main(["scan", str(root), "--modality", "images", "--out", str(tmp_path / "scan")])
    assert "1 image lies in several groups" in capsys.readouterr().err
    main(["scan", str(root / "0000.png"), "--modality", "images", "--out", str(tmp_path / "one")])
    shown = capsys.readouterr().err
    assert "1 in 1 group," in shown and "1 groups" not in shown and "1 items" not in shown


def test_an_archive_behind_links_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "real" / "deep", count=4)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "farm").mkdir()
    (tmp_path / "farm" / "inner").symlink_to(tmp_path / "real" / "deep")
    for archive in ("link", "farm"):
        main(["scan", str(tmp_path / archive), "--modality", "images", "--out", str(tmp_path / f"scan-{archive}")])
        assert "4 in 4 groups" in capsys.readouterr().err
