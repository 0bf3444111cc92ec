"""What scanning processes say: JSON of a known shape, or they are taken for dead."""

import pickle
from pathlib import Path

import pytest

import data_adapters
from data_adapters.record import Rejected
from data_adapters.scan import scan_archive
from data_adapters.scan.words import Checked, Missing, NoWordError, Ready, pack, unpack
from tests.conftest import write_pictures

RESULTS = [
    "[]",
    Checked({"id": "12", "label": None, "samples": 3}, "f"),
    Rejected(uri="a/b.png", reason="broken", remedy="again"),
]


@pytest.mark.parametrize(("word", "results"), [(Ready(), 0), (Missing("h5py", "pip"), 2), (RESULTS, 3), ([], 0)])
def test_a_word_comes_back(word: object, results: int) -> None:
    assert unpack(pack(word), results=results) == word  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b"7", b'"ready"', b'{"results": 1}', b'{"results": [1]}', b'{"results": ["a", "b"]}',
     b'{"results": [{"row": {"id": [1]}, "facts": ""}]}', b'{"missing": {"cause": 1}}', b"\xff", pickle.dumps(["a"])],
)  # fmt: skip
def test_anything_else_is_no_word(data: bytes) -> None:
    with pytest.raises(NoWordError):
        unpack(data, results=1)


EVIL = """
import os, pickle, sys
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.scan import words

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)

class Evil(ImagesAdapter):
    name = "evil"

    def verify(self, record):
        if record.uri.endswith("0003.png"):  # a reader that was taken over speaks in its process's place
            from multiprocessing.connection import Connection
            pipe = Connection(int(sys.argv[1]))
            pipe.send_bytes(pickle.dumps([Bomb()]))
            os._exit(0)
        super().verify(record)
"""


def test_what_a_taken_over_process_says_costs_its_file_and_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "a", count=6)
    found = scan_archive(data_adapters.create("./evil.py:Evil"), Path("a"), workers=1)
    assert len(found) == 5 and [Path(one.uri).name for one in found.refused] == ["0003.png"]
    assert not Path("unpickled").exists()
