"""Sequences of one session in 3-D mode: channels on one grid with one foreground, paired views at one place."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_adapters import create, from_description
from data_adapters.augment.operations import Chain
from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError, UserError
from data_adapters.manifest import Manifest
from data_adapters.mri.cube_adapter import MRI3DAdapter, ras_of
from data_adapters.mri.cube_views import operations
from data_adapters.mri.sequences import parts
from data_adapters.scan import scan_archive
from tests.data.mri import phantom, write_nifti, write_series
from tests.data.mri_sessions import ALL, write_session

SMALL = {"global_size": 24, "local_size": 16, "n_global": 2, "n_local": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LEJEPA_CACHE", str(folder))
    return folder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(combine: str, **options) -> MRI3DAdapter:
    return MRI3DAdapter(**{**SMALL, "sequences": ALL, "combine": combine, **options})


def views_of(adapter: MRI3DAdapter, record: Record, seed: int) -> list[torch.Tensor]:
    return adapter.views(adapter.read(record, rng(seed)), rng(seed))


def write_at(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize("combine", ["channels", "views"])
def test_through_manifest_and_description(tmp_path, combine):
    write_session(tmp_path / "data", "sub-01", ALL)
    write_session(tmp_path / "data", "sub-02", ["T2w"])
    adapter = make(combine, sequence_dropout=0.3)
    assert adapter.spec.channels == (3 if combine == "channels" else 1) == len(adapter.spec.mean)
    scan_archive(adapter, tmp_path / "data").write(tmp_path / "scan")
    manifest = Manifest.read(tmp_path / "scan" / "manifest.parquet")
    again = from_description(manifest.adapter)
    assert again.describe() == adapter.describe() and again.spec == adapter.spec
    records = list(manifest.records())
    assert len(records) == 2
    for record, expected in zip(records, adapter.scan(tmp_path / "data"), strict=True):
        assert torch.equal(again.prepare(record), adapter.prepare(expected))
        assert all(
            torch.equal(a, b) for a, b in zip(views_of(again, record, 3), views_of(adapter, expected, 3), strict=True)
        )


def test_channels_hold_what_each_sequence_alone_gives(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w", "FLAIR"])
    (record,) = make("channels").scan(tmp_path)
    prepared = make("channels").prepare(record)
    assert prepared.shape == (1, 3, 24, 24, 24) and prepared.dtype == torch.float32
    assert prepared[:, 1].abs().max() == 0  # the missing T2w
    alone = MRI3DAdapter(**SMALL)
    for channel, name in ((0, "T1w"), (2, "FLAIR")):  # both phantoms fill one box
        assert torch.equal(prepared[:, channel], alone.prepare(parts(record)[name])[:, 0])
    assert torch.equal(prepared, make("channels").prepare(record))


def test_channels_share_the_foreground_of_all(tmp_path):
    """A ball that one sequence shows, beside the other's, must stay, and both must keep their places."""
    grid = np.stack(np.meshgrid(*(np.arange(40),) * 3, indexing="ij"))
    for name, centre in (("T1w", (15, 20, 20)), ("T2w", (26, 20, 20))):
        ball = ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) < 65
        texture = rng().random((40, 40, 40), dtype=np.float32)
        write_nifti(tmp_path / "s" / f"sub-1_{name}.nii", (ball * (500 + 100 * texture)), spacing=(1, 1, 1))
    adapter = make("channels", global_size=40, sequences=["T1w", "T2w"])
    (record,) = adapter.scan(tmp_path)
    prepared = adapter.prepare(record)[0]
    centres = [torch.nonzero(image > 0.1).float().mean(dim=0) for image in prepared]
    scale = 40 / adapter.read(record, rng()).channels[0].voxels.shape[2]
    # 11 voxels apart along R, and right is on the left-hand side
    np.testing.assert_allclose((centres[0] - centres[1]).numpy(), [0, 0, 11 * scale], atol=0.3)
    # a patient without the second sequence is cut to the first, as in mri3d without sequences
    assert MRI3DAdapter(**SMALL).read(parts(record)["T1w"], rng()).voxels.shape[2] < 40 / scale


def test_channels_of_a_view_share_crop_turn_side_and_intensities_but_not_noise(tmp_path):
    for name in ("T1w", "FLAIR"):
        write_nifti(tmp_path / "s" / f"sub-1_{name}.nii", phantom(shape=(24, 24, 24)), spacing=(1, 1, 1))
    adapter = make("channels", sequence_dropout=0)
    (record,) = adapter.scan(tmp_path)
    apart = []
    for seed in range(30):
        for view in views_of(adapter, record, seed):
            assert view[0].max() > 0 and view[1].abs().max() == 0  # no signal and no noise in the missing one
            apart.append(float((view[0] - view[2]).abs().mean()))
    noisy = [difference for difference in apart if difference > 0]
    assert 0.02 < len(noisy) / len(apart) < 0.16  # .3 * 1/4
    assert max(noisy) < 0.1


def test_intensities_draw_alike_for_every_channel_and_go_on_differently():
    image = rng(1).random((12, 12, 12), dtype=np.float32)
    seen = set()
    for seed in range(60):
        generator = rng(seed)
        one, other = Chain(operations())([image.copy(), image.copy()], generator)
        alone = rng(seed)
        (single,) = Chain(operations())([image.copy()], alone)
        np.testing.assert_array_equal(one, single)
        same = bool(np.array_equal(one, other))
        assert not same or generator.random() == alone.random()
        seen.add(same)
    assert seen == {True, False}


def test_channel_dropout_blanks_some_views_and_never_all_channels(tmp_path):
    write_session(tmp_path, "sub-01", ALL)
    adapter = make("channels", sequence_dropout=0.5, n_global=1, n_local=7)
    (record,) = adapter.scan(tmp_path)
    present = [
        [bool(channel.any()) for channel in view] for seed in range(12) for view in views_of(adapter, record, seed)
    ]
    counts = np.sum(present, axis=1)
    assert counts.min() == 1 and counts.max() == 3
    np.testing.assert_allclose(np.mean(present, axis=0), 0.5 + 1 / 24, atol=0.17)


def test_views_are_drawn_from_different_sequences(tmp_path):
    write_session(tmp_path, "sub-01", ALL)
    adapter = make("views", sequence_dropout=0)
    (record,) = adapter.scan(tmp_path)
    source = adapter.read(record, rng())
    alone = {name: MRI3DAdapter(**SMALL).read(part, rng()).voxels for name, part in parts(record).items()}
    drawn = [source.draw(rng(seed)) for seed in range(30)]
    assert {len(channels) for channels in drawn} == {1}
    seen = {name for (cube,) in drawn for name, voxels in alone.items() if np.array_equal(cube.voxels, voxels)}
    assert seen == set(ALL)
    assert {tuple(view.shape) for view in views_of(adapter, record, 0)} == {(1, 24, 24, 24), (1, 16, 16, 16)}
    dropped = [len(make("views", sequence_dropout=0.5).read(record, rng(seed)).cubes) for seed in range(40)]
    assert set(dropped) == {1, 2, 3}
    assert not make("views", flip=False).read(record, rng()).mirror
    prepared = adapter.prepare(record)
    assert prepared.shape == (3, 1, 24, 24, 24)
    assert torch.equal(prepared[1:2], adapter.prepare(parts(record)["T2w"]))


def tilted(spacing: float, degrees: float, origin: tuple[float, float, float]) -> np.ndarray:
    """An oblique RAS affine."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, origin
    return affine


def test_a_position_in_the_cube_is_one_in_the_scanner(tmp_path):
    affine = tilted(1.5, 20, (-30, 12, 7))
    array = phantom(shape=(32, 30, 28)).astype(np.float32) / 4
    array[20, 9, 17] = 5000
    write_at(tmp_path / "a.nii", array, affine)
    adapter = MRI3DAdapter(spacing_mm=1.5)
    (record,) = adapter.scan(tmp_path)
    cubes = adapter._cubes(record, store=False)
    array[...] = np.where(array == 5000, 5000, 0)  # where the bright voxel went
    found = np.argwhere(cubes.voxels[0] == cubes.voxels[0].max())
    expected = affine @ [20, 9, 17, 1]
    places = [ras_of(record, cubes) @ [*(index + 0.5), 1] for index in found]
    assert min(np.linalg.norm(place - expected) for place in places) < 0.1


def test_paired_windows_of_a_spine_lie_at_one_place(tmp_path):
    """T2w begins 15 mm higher, is coarser, and ends earlier: windows meet in mm, or T2w stays away."""
    write_at(tmp_path / "s" / "sub-1_T1w.nii", phantom(shape=(20, 20, 80)), tilted(1, 5, (0, 0, 0)))
    write_at(tmp_path / "s" / "sub-1_T2w.nii", phantom(seed=1, shape=(16, 16, 34)), tilted(1.25, 5, (0, -1.3, 15)))
    adapter = make("views", sequence_dropout=0, spacing_mm=1)
    (record,) = adapter.scan(tmp_path)
    assert record.samples >= 3
    members = parts(record)
    cubes = {name: adapter._cubes(part, store=True) for name, part in members.items()}
    together = alone = 0
    for seed in range(24):
        middles = []
        for source in adapter.read(record, rng(seed)).cubes:
            name, start = next(
                (name, start)
                for name, whole in cubes.items()
                for start in range(whole.voxels.shape[1] - len(source.voxels) + 1)
                if np.array_equal(whole.voxels[0][start : start + len(source.voxels)], source.voxels)
            )
            shape = source.voxels.shape
            position = [start + shape[0] / 2, shape[1] / 2, shape[2] / 2, 1]
            ends = start in (0, cubes[name].voxels.shape[1] - shape[0])
            middles.append(((ras_of(members[name], cubes[name]) @ position)[2], ends))
        if len(middles) == 1:
            alone += 1
        elif not any(ends for _, ends in middles):
            together += 1
            assert abs(middles[0][0] - middles[1][0]) <= 2
    assert together and alone


def test_what_is_on_several_grids_is_no_channels(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w"])
    write_session(tmp_path, "sub-01", ["T2w"], spacing=(1.1, 1.25, 2.0))
    found = list(make("channels").scan(tmp_path))
    assert {item.reason for item in found} == {"sequences of one session are not on one grid"}
    assert all(isinstance(item, Rejected) and "combine to views" in item.remedy for item in found)
    (record,) = make("views").scan(tmp_path)
    make("views").verify(record)


def test_a_grid_that_changed_after_the_scan_is_refused(tmp_path):
    paths = write_session(tmp_path, "sub-01", ["T1w", "T2w"])
    adapter = make("channels")
    (record,) = adapter.scan(tmp_path)
    write_nifti(paths[1], phantom(shape=(20, 24, 18)))
    for use in (adapter.prepare, adapter.verify, lambda r: adapter.read(r, rng())):
        with pytest.raises(BadFileError, match="not on one grid"):
            use(record)


def test_a_sequence_that_mri3d_refuses_is_missing_from_its_session(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w"])
    write_session(tmp_path, "sub-01", ["FLAIR"], spacing=(1.0, 1.0, 6.0))
    record, thick = sorted(make("views").scan(tmp_path), key=lambda item: isinstance(item, Rejected))
    assert list(parts(record)) == ["T1w"] and record.meta["missing"] == ["T2w", "FLAIR"]
    assert thick.reason == "thick slices (above 4 mm)"


@pytest.mark.parametrize("combine", ["channels", "views"])
def test_damage_in_one_sequence_names_its_file(tmp_path, combine):
    paths = write_session(tmp_path, "sub-01", ["T1w", "T2w"])
    bad = phantom(shape=(20, 24, 16)).astype(np.float32)
    bad[3, 3, 3] = np.nan
    write_nifti(paths[1], bad)
    adapter = make(combine)
    (record,) = adapter.scan(tmp_path)
    with pytest.raises(BadFileError, match="NaN") as caught:
        adapter.verify(record)
    assert caught.value.path == str(paths[1]) and str(tmp_path) not in caught.value.cause + caught.value.remedy
    paths[1].write_bytes(paths[0].read_bytes()[:-300])
    with pytest.raises(BadFileError, match="truncated"):
        adapter.verify(record)


def test_dicom_series_and_the_cache(tmp_path, cache):
    write_series(tmp_path / "a", phantom(), series=1, SeriesDescription="Ax T1 SE of Doe")
    write_series(tmp_path / "b", phantom(seed=1), series=2, SeriesDescription="Ax FLAIR")
    entries = {"channels": 1, "views": 1 + 2}  # one form for the channels of a session, and one for each volume
    for combine, expected in entries.items():
        adapter = make(combine, sequence_patterns={"T1w": r"\bT1\b", "FLAIR": "flair"}, sequence_dropout=0)
        (record,) = adapter.scan(tmp_path)
        assert "Doe" not in str(record.meta)
        cold = adapter.prepare(record)
        first, second = views_of(adapter, record, 4), views_of(adapter, record, 4)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert len(list(cache.rglob("*.safetensors"))) == expected
        assert torch.equal(cold, adapter.prepare(record))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "channels is not available in mri3d: the option sequences"),
        ({"thick": "refuse"}, "max_slice_mm"),
        ({"slab_mm": 6.0, "plane": "coronal"}, "plane is not .* modality mri.*slab_mm is not"),
        ({"slices": 9}, "global_size"),
        ({"combine": "views"}, "combine without sequences"),
        ({"sequence_patterns": {"T1w": "x"}}, "does not list"),
    ],
)
def test_options_without_effect_are_refused_with_what_to_use(options, message):
    with pytest.raises(UserError, match=message):
        create("mri3d", **options)
