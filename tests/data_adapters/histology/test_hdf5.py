"""PatchCamelyon's HDF5 files: tiles, labels, slides; and files that are something else."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.histology import hdf5
from data_adapters.histology.adapter import HistologyAdapter
from tests.data.histology import write_pcam

SMALL = {"global_size": 96, "local_size": 48}


def records(folder: Path) -> list[Record]:
    found = list(HistologyAdapter(**SMALL).scan(folder))
    assert all(isinstance(f, Record) for f in found), found
    return [f for f in found if isinstance(f, Record)]


def reason(path: Path) -> str:
    (found,) = HistologyAdapter(**SMALL).scan(path)
    return found.reason if isinstance(found, Rejected) else ""


def test_each_row_is_a_tile_with_its_label_and_slide(tmp_path: Path) -> None:
    _, tiles = write_pcam(tmp_path)
    found = records(tmp_path)  # labels and the meta table beside it are no items of their own
    assert [r.item for r in found] == ["0", "1", "2", "3", "4", "5"]
    assert [r.label for r in found] == ["normal", "tumor"] * 3
    assert [r.group for r in found] == [f"camelyon16_train_normal_00{i // 2}" for i in range(6)]
    assert {r.split for r in found} == {"train"}
    adapter = HistologyAdapter(**SMALL)
    for row, record in enumerate(found):
        assert np.array_equal(adapter.prepare(record)[0].numpy().transpose(1, 2, 0), tiles[row])
        assert np.array_equal(adapter.read(record, np.random.default_rng(0)).pixels, tiles[row])
    copy = pickle.loads(pickle.dumps(adapter))
    assert np.array_equal(copy.read(found[3], np.random.default_rng(0)).pixels, tiles[3])


def test_without_labels_and_slides_rows_stand_alone(tmp_path: Path) -> None:
    path, _ = write_pcam(tmp_path, split="valid")
    for other in tmp_path.iterdir():
        if other != path:
            other.unlink()
    found = records(tmp_path)
    assert {r.split for r in found} == {"val"}
    assert len({r.group for r in found}) == len(found)
    assert all(r.label is None for r in found)


@pytest.mark.parametrize("chunks", [None, (1, 96, 96, 3), (4, 96, 96, 3), (64, 48, 48, 1)])
def test_any_chunking_gives_the_same_tiles(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    path, tiles = write_pcam(tmp_path, rows=70, chunks=chunks)
    table = hdf5.open_tiles(path)
    for row in (69, 0, 65, 63, 1):
        assert np.array_equal(table.read(row), tiles[row])


def test_costly_chunks_are_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks across many rows, a second process reads what the first one decoded."""
    path, tiles = write_pcam(tmp_path, rows=70, chunks=(64, 96, 96, 1))
    hdf5.open_tiles(path).read(5)
    again = hdf5.open_tiles(path)

    class Forbidden:
        chunks, shape = again.images.chunks, again.images.shape

        def __getitem__(self, key: object) -> None:
            raise AssertionError("decompressed again")

    again.images = Forbidden()
    assert np.array_equal(again.read(6), tiles[6])
    with pytest.raises(AssertionError):
        again.read(69)  # the other block
    monkeypatch.setenv("LEJEPA_CACHE", "off")
    assert np.array_equal(hdf5.open_tiles(path).read(69), tiles[69])


def test_foreign_and_damaged_files_have_a_reason(tmp_path: Path) -> None:
    cases = {
        "patch coordinates, not images": {"coords": np.zeros((3, 2), int)},
        "HDF5 file without tiles": {"features": np.zeros((3, 8))},
        "not 8-bit RGB": {"x": np.zeros((3, 96, 96, 3), np.uint16)},
        "under 32 pixels": {"x": np.zeros((3, 16, 96, 3), np.uint8)},
    }
    for number, (cause, content) in enumerate(cases.items()):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
        assert cause in reason(path)
    cut, _ = write_pcam(tmp_path)
    cut.write_bytes(cut.read_bytes()[:3000])
    assert reason(cut) == "damaged or truncated HDF5 file"


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    path, _ = write_pcam(tmp_path)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.ExternalLink(str(path), "x")
    assert reason(tmp_path / "link.h5") == "HDF5 file without tiles"


@pytest.mark.parametrize("which", ["y", "meta"])
def test_labels_and_slides_of_other_tiles_are_refused(tmp_path: Path, which: str) -> None:
    path, _ = write_pcam(tmp_path)
    if which == "y":
        with h5py.File(str(path).replace("_x.h5", "_y.h5"), "w") as file:
            file["y"] = np.zeros((5, 1, 1, 1), np.uint8)
    else:
        meta = Path(str(path).replace("_x.h5", "_meta.csv"))
        meta.write_text("\n".join(meta.read_text().splitlines()[:-1]))
    assert "belong to the tiles" in reason(path)


def test_labels_of_other_shapes_and_of_other_archives(tmp_path: Path) -> None:
    path, _ = write_pcam(tmp_path)
    labels = Path(str(path).replace("_x.h5", "_y.h5"))
    for values, expected in (
        (np.eye(2)[[0, 1, 1, 0, 0, 1]], ["normal", "tumor", "tumor", "normal", "normal", "tumor"]),
        (np.array([b"a", b"NA", b"b", b"a", b"", b"b"]), ["a", None, "b", "a", None, "b"]),
    ):
        with h5py.File(labels, "w") as file:
            file["y"] = values
        assert [r.label for r in records(tmp_path)] == expected
    with h5py.File(labels, "w") as file:
        file["y"] = np.array([[1, 1]] * 6)
    assert "several labels" in reason(path)
    labels.unlink()
    own = path.rename(tmp_path / "mine.h5")
    with h5py.File(own, "r+") as file:
        file["label"] = np.array([0, 1, 0, 1, 1, 0], np.float32)[:, None]
    assert [r.label for r in records(own)] == ["0", "1", "0", "1", "1", "0"]
    with h5py.File(own, "r+") as file:
        del file["label"]
        file["labels"] = np.zeros(5)
    assert "do not belong to the tiles" in reason(own)


def test_slides_of_a_meta_table_as_excel_saves_it(tmp_path: Path) -> None:
    path, _ = write_pcam(tmp_path)
    meta = Path(str(path).replace("_x.h5", "_meta.csv"))
    meta.write_text(
        "Row;Patient\n" + "".join(f"{row};{row // 2}{'.0' if row % 2 else ''}\n" for row in range(6)), "utf-16"
    )
    assert [r.group for r in records(tmp_path)] == ["0", "0", "1", "1", "2", "2"]
    meta.write_text("row,patient\n" + "".join(f"{row},{'NA' if row == 3 else row}\n" for row in range(6)))
    assert "meta table that does not belong" in reason(path)


def test_a_row_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path, _ = write_pcam(tmp_path)
    for row in (6, -1):
        with pytest.raises(BadFileError, match="does not have"):
            hdf5.open_tiles(path).read(row)
