"""Sequences of one session: recognised, never guessed; as channels or as paired views; missing ones and dropout."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_adapters import create, from_description
from data_adapters.base import Record, Rejected
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.sequences import ChannelSlab, kept, parts, slice_places
from data_adapters.scan import scan_archive
from tests.data.mri import phantom, write_nifti, write_series
from tests.data.mri_sessions import ALL, SHAPE, SUFFIXES, write_session


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(combine: str, **options) -> MRIAdapter:
    sizes = {"global_size": 32, "local_size": 16, "n_global": 2, "n_local": 2, "slices": 4}
    return MRIAdapter(sequences=ALL, combine=combine, **{**sizes, **options})


def refused(adapter: MRIAdapter, root: Path, **options) -> set[str]:
    found = list(adapter.scan(root, **options))
    assert all(isinstance(item, Rejected) and item.remedy for item in found), found
    return {item.reason for item in found}


def test_one_record_for_each_subject_and_session(tmp_path):
    write_session(tmp_path, "sub-01", ALL, session="1")
    write_session(tmp_path, "sub-01", ["T1w"], session="2")
    write_session(tmp_path, "sub-02", ["FLAIR", "T1w"])
    records = list(make("channels").scan(tmp_path))
    assert [record.group for record in records] == ["sub-01", "sub-01", "sub-02"]
    assert [list(parts(record)) for record in records] == [ALL, ["T1w"], ["T1w", "FLAIR"]]
    assert [record.meta["missing"] for record in records] == [[], ["T2w", "FLAIR"], ["T2w"]]
    for record in records:
        for name, part in parts(record).items():
            assert name in Path(part.uri).name and part.meta["files"] == [part.uri]


@pytest.mark.parametrize("combine", ["channels", "views"])
def test_through_manifest_and_description(tmp_path, combine):
    write_session(tmp_path / "data", "sub-01", ALL)
    write_session(tmp_path / "data", "sub-02", ["T2w"])
    adapter = make(combine)
    scan_archive(adapter, tmp_path / "data").write(tmp_path / "scan")
    manifest = Manifest.read(tmp_path / "scan" / "manifest.parquet")
    again = from_description(manifest.adapter)
    assert again.describe() == adapter.describe()
    for record, expected in zip(manifest.records(), adapter.scan(tmp_path / "data"), strict=True):
        assert torch.equal(again.prepare(record), adapter.prepare(expected))


def test_channels_hold_what_each_sequence_alone_gives(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w", "FLAIR"])
    adapter = make("channels")
    assert adapter.spec.channels == 3 == len(adapter.spec.mean)
    (record,) = adapter.scan(tmp_path)
    prepared = adapter.prepare(record)
    assert prepared.shape == (4, 3, 32, 32) and prepared.dtype == torch.float32
    assert prepared[:, 1].abs().max() == 0  # the missing T2w
    alone = MRIAdapter(global_size=32, slices=4)
    for channel, part in ((0, "T1w"), (2, "FLAIR")):
        expected = alone.prepare(parts(record)[part])
        # phantoms differ in texture only, so the usable slices of one are those of all
        assert torch.allclose(prepared[:, channel], expected[:, 0], atol=1e-6)
    assert torch.equal(prepared, make("channels").prepare(record))


def test_channel_views_have_no_signal_and_no_noise_where_a_sequence_is_missing(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w", "FLAIR"])
    adapter = make("channels", sequence_dropout=0)
    (record,) = adapter.scan(tmp_path)
    for seed in range(25):
        for view in adapter.views(adapter.read(record, rng(seed)), rng(seed)):
            assert view.shape[0] == 3 and view[1].abs().max() == 0
            assert view[0].max() > 0 and view[2].max() > 0


def test_channel_dropout_blanks_some_views_and_never_all_channels(tmp_path):
    write_session(tmp_path, "sub-01", ALL)
    adapter = make("channels", sequence_dropout=0.5, n_global=8, n_local=0)
    (record,) = adapter.scan(tmp_path)
    present = []
    for seed in range(12):
        for view in adapter.views(adapter.read(record, rng(seed)), rng(seed)):
            present.append([bool(channel.any()) for channel in view])
    counts = np.sum(present, axis=1)
    assert counts.min() == 1 and counts.max() == 3
    # .5 each, and the rule that one stays adds 1/8 * 1/3
    np.testing.assert_allclose(np.mean(present, axis=0), 0.5 + 1 / 24, atol=0.17)


def test_kept_is_a_fair_draw():
    drawn = [kept(range(3), 0.5, generator) for generator in rng(1).spawn(4000)]
    assert min(map(len, drawn)) == 1
    shares = [np.mean([item in some for some in drawn]) for item in range(3)]
    np.testing.assert_allclose(shares, 0.5 + 1 / 24, atol=0.03)
    assert kept([4, 5], 0.0, rng()) == [4, 5]


def test_channels_of_one_view_show_the_same_place():
    numbered = np.broadcast_to(np.linspace(0.1, 1, 12, dtype=np.float16)[:, None, None], (12, 16, 16))
    slab = ChannelSlab(slices=(numbered, None, numbered), centres=np.arange(3, 9), mirror=False, dropout=0.0)
    for seed in range(20):
        image = slab.draw(rng(seed))
        assert image.shape == (16, 16, 3) and image[..., 1].max() == 0
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("n_sequences", [2, 5])
def test_any_number_of_channels(tmp_path, n_sequences):
    names = SUFFIXES[:n_sequences]
    write_session(tmp_path, "sub-01", names)
    adapter = MRIAdapter(sequences=names, global_size=32, local_size=16, sequence_dropout=0)
    (record,) = adapter.scan(tmp_path)
    for seed in range(15):
        views = adapter.views(adapter.read(record, rng(seed)), rng(seed))
        assert {view.shape[0] for view in views} == {n_sequences}
    assert adapter.prepare(record).shape == (9, n_sequences, 32, 32)


def test_views_are_drawn_from_different_sequences(tmp_path):
    for index, suffix in enumerate(ALL):  # so that one can tell them apart: 1, 2 and 3 bright balls
        array = np.zeros(SHAPE, np.float32) + rng(index).random(SHAPE, dtype=np.float32)
        array[4:16, 4:20, 3:13] += 100
        array[4 : 4 + 4 * (index + 1), 4:20] += 100
        write_nifti(tmp_path / "sub-1" / f"sub-1_{suffix}.nii", array)
    adapter = make("views", sequence_dropout=0)
    assert adapter.spec.channels == 1
    (record,) = adapter.scan(tmp_path)
    source = adapter.read(record, rng(3))
    assert len(source.slabs) == 3
    seen = {round(float(source.draw(rng(seed)).mean()), 2) for seed in range(60)}
    assert len(seen) == 3
    dropped = [len(make("views", sequence_dropout=0.5).read(record, rng(seed)).slabs) for seed in range(40)]
    assert set(dropped) == {1, 2, 3}


def test_paired_views_lie_at_one_place_of_the_scanner(tmp_path):
    """T2w has thicker slices and begins elsewhere: the slabs must still meet in mm."""
    write_nifti(tmp_path / "sub-1" / "sub-1_T1w.nii", phantom(shape=(20, 24, 40)), spacing=(1, 1, 1))
    thick = nib.Nifti1Image(phantom(seed=1, shape=(20, 24, 14)), np.diag([1, 1, 2.5, 1]))
    thick.affine[2, 3] = 3
    nib.save(nib.Nifti1Image(thick.dataobj, thick.affine), tmp_path / "sub-1" / "sub-1_T2w.nii")
    adapter = make("views", slab_mm=2.0, sequence_dropout=0)
    (record,) = adapter.scan(tmp_path)
    members = parts(record)
    places = {name: slice_places(part, "axial") for name, part in members.items()}
    np.testing.assert_allclose(places["T1w"], np.arange(40))
    np.testing.assert_allclose(places["T2w"], 3 + 2.5 * np.arange(14))
    whole = {name: adapter._stack(part, store=False) for name, part in members.items()}
    for seed in range(20):
        slabs = adapter.read(record, rng(seed)).slabs
        found = []
        for slab, name in zip(slabs, members, strict=True):
            shown = np.asarray(slab.slices[slab.centres[0]])
            index = next(i for i in range(len(places[name])) if np.array_equal(whole[name].slices[i], shown))
            found.append(places[name][index])
        assert abs(found[0] - found[1]) <= 4.5  # slab_mm to both sides, and half a thick slice


def test_prepare_of_views_gives_slices_of_every_sequence(tmp_path):
    write_session(tmp_path, "sub-01", ["T2w", "T1w"])
    adapter = make("views", channels=3)
    (record,) = adapter.scan(tmp_path)
    prepared = adapter.prepare(record)
    assert prepared.shape == (8, 3, 32, 32)
    assert torch.equal(prepared[:4], adapter.prepare(parts(record)["T1w"]))
    adapter.verify(record)


def test_unregistered_sequences_are_no_channels(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w"])
    write_session(tmp_path, "sub-01", ["T2w"], spacing=(1.1, 1.25, 2.0))
    reason = "sequences of one session are not on one grid"
    assert refused(make("channels"), tmp_path) == {reason}
    assert len(list(make("views").scan(tmp_path))) == 1
    write_session(tmp_path, "sub-01", ["T2w"], shape=(20, 24, 18))
    assert refused(make("channels"), tmp_path) == {reason}
    moved = phantom(seed=1, shape=SHAPE)
    affine = np.diag([1.0, 1.25, 2.0, 1.0])
    affine[0, 3] = 5
    nib.save(nib.Nifti1Image(moved, affine), tmp_path / "sub-01" / "sub-01_T2w.nii.gz")
    assert refused(make("channels"), tmp_path) == {reason}


def test_turned_storage_of_one_grid_is_one_grid(tmp_path):
    write_nifti(tmp_path / "sub-1" / "sub-1_T1w.nii", phantom(shape=SHAPE), axes="RAS")
    write_nifti(tmp_path / "sub-1" / "sub-1_T2w.nii", phantom(seed=1, shape=SHAPE), axes="PIL")
    (record,) = make("channels").scan(tmp_path)
    assert list(parts(record)) == ["T1w", "T2w"]


def test_nothing_is_guessed(tmp_path):
    write_nifti(tmp_path / "p1" / "t1.nii", phantom(shape=SHAPE))
    assert refused(make("views"), tmp_path) == {"sequence not recognised"}
    write_session(tmp_path / "b", "sub-01", ["bold"])
    assert refused(make("views"), tmp_path / "b") == {"not one of the option's sequences"}
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "sub-01" / "sub-01_bold.nii.gz").rename(tmp_path / "c" / "a.nii.gz")
    assert refused(make("views", sequence_patterns={"T1w": "a", "T2w": "nii"}), tmp_path / "c") == {
        "several sequence patterns match"
    }


def test_several_images_of_one_sequence(tmp_path):
    write_session(tmp_path, "sub-01", ["T1w"])
    write_nifti(tmp_path / "sub-01" / "sub-01_ce-gad_T1w.nii.gz", phantom(seed=5, shape=SHAPE))
    assert refused(make("views"), tmp_path) == {"several images of one sequence in one session"}
    adapter = MRIAdapter(sequences=["T1w", "T1c"], sequence_patterns={"T1c": "ce-gad_T1w"})
    (record,) = adapter.scan(tmp_path)  # a pattern is stronger than the BIDS suffix
    assert {name: Path(part.uri).name for name, part in parts(record).items()} == {
        "T1w": "sub-01_T1w.nii.gz",
        "T1c": "sub-01_ce-gad_T1w.nii.gz",
    }


def test_catalogue_names_sequence_and_session(tmp_path):
    write_nifti(tmp_path / "x1.nii", phantom(shape=SHAPE))
    write_nifti(tmp_path / "x2.nii", phantom(seed=1, shape=SHAPE))
    table = tmp_path / "c.csv"
    table.write_text("path,group,sequence,session,label\nx1.nii,p,t2W,a,old\nx2.nii,p,FLAIR,a,\n")
    (record,) = make("channels").scan(tmp_path, catalog=Catalog(table))
    assert list(parts(record)) == ["T2w", "FLAIR"] and (record.group, record.label) == ("p", "old")
    table.write_text("path,group,sequence,session,label\nx1.nii,p,T2w,a,old\nx2.nii,p,FLAIR,a,new\n")
    assert refused(make("channels"), tmp_path, catalog=Catalog(table)) == {"labels or splits of one session differ"}


def test_dicom_series_are_named_by_their_description(tmp_path):
    write_series(tmp_path / "a", phantom(shape=SHAPE), series=1, SeriesDescription="Ax T1 SE of Doe")
    write_series(tmp_path / "b", phantom(seed=1, shape=SHAPE), series=2, SeriesDescription="Ax FLAIR")
    write_series(
        tmp_path / "c", phantom(seed=2, shape=SHAPE), series=3, SeriesDescription="Ax T1 SE", StudyInstanceUID="1.2.3"
    )
    adapter = make("channels", sequence_patterns={"T1w": r"\bT1\b", "FLAIR": "flair"})
    first, second = adapter.scan(tmp_path)
    assert (list(parts(first)), list(parts(second))) == (["T1w", "FLAIR"], ["T1w"])  # another study is another session
    assert "Doe" not in str(first.meta)
    assert adapter.prepare(first).shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequences": ["T1w", "t1W"]}, "different"),
        ({"sequences": ["T1w"], "plane": "acquired"}, "one plane"),
        ({"sequences": ["T1w"], "channels": 3}, "channels=3"),
        ({"combine": "views"}, "combine without sequences"),
        ({"sequence_dropout": 0.5}, "sequence_dropout without sequences"),
        ({"sequences": ["T1w"], "sequence_patterns": {"T2w": "x"}}, "does not list"),
        ({"sequences": ["T1w"], "sequence_patterns": {"T1w": "("}}, "regular expression"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        create("mri", **options)


def test_every_part_is_cached_once_and_read_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path / "cache"))
    write_session(tmp_path / "data", "sub-01", ALL)
    for combine in ("channels", "views"):
        adapter = make(combine)
        (record,) = adapter.scan(tmp_path / "data")
        assert isinstance(record, Record)
        first, second = (adapter.views(adapter.read(record, rng(4)), rng(5)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
