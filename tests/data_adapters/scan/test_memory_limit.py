"""A file that needs more memory than a scan's processes may take costs that file only."""

import sys
from pathlib import Path

import pytest
from PIL import Image

import data_adapters
from data_adapters.scan import scan_archive

GREEDY = """
import numpy as np
from data_adapters.images.adapter import ImagesAdapter


class Greedy(ImagesAdapter):
    def verify(self, record):
        super().verify(record)
        if record.uri.endswith("greedy.png"):
            np.ones(1 << 29, np.uint8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_memory_of_a_file_is_limited(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("a.png", "greedy.png", "z.png"):
        Image.new("RGB", (32, 32), (200, 10, 10)).save(archive / name)
    adapter = data_adapters.create(f"{tmp_path / 'greedy.py'}:Greedy")
    free = scan_archive(adapter, archive, workers=1)
    assert free.manifest.column("path") == ["a.png", "greedy.png", "z.png"]
    limited = scan_archive(adapter, archive, workers=1, memory_bytes=128 << 20)
    assert limited.manifest.column("path") == ["a.png", "z.png"]
    assert [(Path(one.uri).name, one.reason) for one in limited.refused] == [("greedy.png", "unreadable (MemoryError)")]
