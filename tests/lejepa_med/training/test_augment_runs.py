"""Pipeline files on the command line: shown, checked, trained with, resumed without, and kept with the encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.config import load_config
from lejepa_med.data.dataset import EpochBatches, ViewDataset
from lejepa_med.data.loader import make_loader
from lejepa_med.models.folder import load_encoder
from lejepa_med.training import loop
from tests.data.mri import phantom, write_nifti
from tests.lejepa_med.runs import losses, weights

PICTURES = """
__version__: 2.0.8
transform:
  __class_fullname__: Compose
  p: 1.0
  transforms:
  - {__class_fullname__: HorizontalFlip, p: 0.5}
  - {__class_fullname__: VerticalFlip, p: 0.5}
  - __class_fullname__: OneOf
    p: 0.5
    transforms:
    - {__class_fullname__: lejepa.ColourJitter, hue: 0.0, p: 1.0}
    - {__class_fullname__: GaussNoise, p: 1.0}
  bbox_params: null
  keypoint_params: null
  additional_targets: {}
  is_check_shapes: true
"""
VOLUMES = """
transforms:
- {_target_: RandFlip, prob: 0.5, spatial_axis: 2}
- {_target_: lejepa.Gamma, p: 0.5}
- {_target_: RandGaussianNoise, prob: 0.5, std: 0.05}
"""
TINY = {
    "views.n_global": 2,
    "views.n_local": 0,
    "model.projector_hidden": 32,
    "model.projector_dim": 8,
    "objective.slices": 16,
    "train.accelerator": "cpu",
    "train.log_every": 1,
    "train.checkpoint_minutes": 0,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    for number in range(8):
        write_nifti(root / f"sub-{number}.nii", phantom(seed=number, shape=(24, 28, 20)))
    return root


def command(archive: Path, out: Path, modality: str, *more: object, size: int = 32) -> list[str]:
    settings = {**TINY, "views.global_size": size}
    flags = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [
        "pretrain",
        str(archive),
        "--out",
        str(out),
        "--modality",
        modality,
        *flags,
        "--no-monitor.online",
        *map(str, more),
    ]


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def runs_and_resumes(
    run: list[str], out: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch, *, step: int
) -> dict[str, object]:
    """Train whole and interrupted at a step; resume after the pipeline's file is gone. Gives the content kept."""
    whole = [str(out.with_name("whole")) if part == str(out) else part for part in run]
    main(whole)
    real = loop.train_step

    def die(fabric, settings, state, *args, **kwargs):
        if state.step == step:
            raise KeyboardInterrupt
        return real(fabric, settings, state, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "train_step", die)
        main(run)
    pipeline.unlink()
    main([*run, "--resume"])
    assert losses(out) == losses(out.with_name("whole")) and weights(out) == weights(out.with_name("whole"))
    kept = load_config(out / "config.yaml").data.options["augment"]
    info = json.loads((out / "encoder" / "lejepa_med.json").read_text())
    assert info["adapter"]["options"]["augment"] == kept
    assert "augment" not in (out / "local.yaml").read_text()
    assert load_encoder(out).adapter.options.augment == kept
    return kept


def test_a_picture_pipeline_trains_and_is_kept(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(PICTURES)
    options = ("-o", f"augment={pipeline}", "--backbone", "resnet10t", "--epochs", 1, "--batch-size", 8)
    run = command(pictures, tmp_path / "run", "images", *options)
    kept = runs_and_resumes(run, tmp_path / "run", pipeline, monkeypatch, step=3)
    assert kept == {"file": "mine.yaml", **yaml.safe_load(PICTURES)}


def test_a_volume_pipeline_trains_and_is_kept(heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(VOLUMES)
    options = ("-o", f"augment={pipeline}", "--backbone", "monai:resnet10", "--epochs", 2, "--batch-size", 4)
    run = command(heads, tmp_path / "run", "mri3d", *options, size=16)
    kept = runs_and_resumes(run, tmp_path / "run", pipeline, monkeypatch, step=3)
    assert kept == {"file": "mine.yaml", **yaml.safe_load(VOLUMES)}


def test_another_pipeline_cannot_resume_a_run(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(PICTURES)
    options = ("-o", f"augment={pipeline}", "--backbone", "resnet10t", "--epochs", 1, "--batch-size", 16)
    run = command(pictures, tmp_path / "run", "images", *options)
    main([*run, "--dry-run"])
    plan = capsys.readouterr().out  # in a table whose cells wrap
    assert "mine.yaml:" in plan and "HorizontalFlip" in plan and "__class_fullname__" not in plan
    main(run)
    pipeline.write_text(PICTURES.replace("hue: 0.0", "hue: 0.1"))
    assert "data.options" in fails([*run, "--resume"], capsys)


@pytest.mark.parametrize("modality", ["images", "mri3d"])
def test_workers_give_equal_batches(modality: str, pictures: Path, heads: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text(VOLUMES if modality == "mri3d" else PICTURES)
    adapter = data_adapters.create(modality, n_global=2, n_local=2, global_size=24, local_size=16, augment=pipeline)
    manifest = scan_archive(adapter, heads if modality == "mri3d" else pictures, verify=False).manifest

    def run(workers: int) -> list[torch.Tensor]:
        batches = EpochBatches([1] * len(manifest), batch_size=4, epochs=1, seed=5)
        loader = make_loader(ViewDataset(manifest, adapter, seed=5), batches, workers=workers)
        return [part for b in loader for part in (b.rows, b.global_views, b.local_views) if part is not None]

    alone, two = run(0), run(2)
    assert len(alone) == len(two) > 3
    assert all(torch.equal(a, b) for a, b in zip(alone, two, strict=True))


SHOWN = [
    ("images", ()),
    ("histology", ("stain=ihc",)),
    ("mri", ()),
    ("galaxy", ("kind=flux",)),
    ("galaxy", ("kind=picture",)),
    ("mri3d", ()),
]


@pytest.mark.parametrize(("modality", "options"), SHOWN)
def test_the_recipe_of_a_modality_is_a_file_that_fits(
    modality: str, options: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text for one in options for text in ("-o", one)]
    small = ["-o", "global_size=32", "-o", "local_size=16"]
    main(["augment", "--modality", modality, "--show", *given])
    text = capsys.readouterr().out
    file = tmp_path / "mine.yaml"
    main(["augment", "--modality", modality, "--show", *given, "--out", str(file)])
    assert file.read_text() == text and text.startswith("# The recipe of: lejepa-med augment")
    capsys.readouterr()
    main(["augment", str(file), "--modality", modality, *given, *small])
    said = capsys.readouterr().out
    assert "mine.yaml: " in said and f"every step works on views of {modality}" in said
    assert ("tried when the archive is known" in said) == ("kind=flux" in options)


def test_the_command_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--show" in fails(["augment", "--modality", "mri"], capsys)
    assert "kind=flux" in fails(["augment", "--modality", "galaxy", "--show"], capsys)
    (tmp_path / "there.yaml").write_text("x")
    there = str(tmp_path / "there.yaml")
    assert "exists" in fails(["augment", "--modality", "mri", "--show", "--out", there], capsys)
    assert "is no pipeline" in fails(["augment", there, "--modality", "mri"], capsys)


WRONG = [
    ("{__class_fullname__: HorizontalFlp, p: 0.5}", "entry 1 (HorizontalFlp)", "Did you mean HorizontalFlip?"),
    ("{__class_fullname__: GaussianBlur, width: 3, p: 0.5}", "entry 1 (GaussianBlur)", "'width'"),
    ("{__class_fullname__: RandomResizedCrop, size: [64, 64], p: 1}", "gives 64 x 64 x 3", "Views here are"),
    ("{__class_fullname__: lejepa.RicianNoise, p: 0.5}", "entry 1 (lejepa.RicianNoise)", "Views here are"),
]


@pytest.mark.parametrize(("text", "place", "remedy"), WRONG)
@pytest.mark.parametrize("name", ["scan", "pretrain", "inspect"])
def test_a_wrong_pipeline_stops_every_command_before_the_scan(
    name: str, text: str, place: str, remedy: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"transform: {{__class_fullname__: Compose, transforms: [{text}]}}")
    out = tmp_path / "out"
    said = fails([name, str(pictures), "--out", str(out), "--modality", "images", "-o", f"augment={file}"], capsys)
    assert "mine.yaml" in said and place in said and remedy in said and "archive" not in said
    assert not out.exists()


def test_a_file_that_is_not_there(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone.yaml"
    run = [str(pictures), "--out", str(tmp_path / "out"), "--modality", "images", "-o", f"augment={gone}"]
    for name in ("scan", "pretrain", "inspect"):
        said = fails([name, *run], capsys)
        assert f"There is no pipeline file {gone}" in said and "--show" in said


def test_channels_that_only_the_archive_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bands of galaxies are known after the scan: then the pipeline is tried, and not step by step in training."""
    from tests.data import galaxy

    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(6):
        flux = np.repeat(galaxy.source(48, seed=number), 2, axis=2)[..., :5]
        galaxy.write_cube(archive / f"{number}.fits", flux, bands="ugriz", ra=20.0 * number)
    file = tmp_path / "mine.yaml"
    file.write_text("transform: {__class_fullname__: Compose, transforms: [{__class_fullname__: ToSepia, p: 0.5}]}")
    run = command(archive, tmp_path / "run", "galaxy", "-o", f"augment={file}", "--backbone", "resnet10t")
    said = fails([*run, "--batch-size", "2", "--epochs", "1"], capsys)
    assert "entry 1 (ToSepia)" in said and "5 channels" in said


def test_the_sheet_shows_the_pipeline_and_its_views(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(PICTURES)
    sizes = ("--views.n-global", "2", "--views.n-local", "0", "--views.global-size", "32", "-n", "2")
    for name, options in (("own", ()), ("mine", ("-o", f"augment={file}"))):
        arguments = ["inspect", str(pictures), "--modality", "images", "--out", str(tmp_path / name), *options, *sizes]
        main(arguments)
    page = (tmp_path / "mine" / "inspect.html").read_text()
    assert "mine.yaml: HorizontalFlip, VerticalFlip, OneOf" in page
    assert (tmp_path / "mine" / "inspect.png").read_bytes() != (tmp_path / "own" / "inspect.png").read_bytes()
