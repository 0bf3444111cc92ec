"""Awkward pictures of other projects' test suites through the images adapter; test_formats_table.py compares pixels."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_adapters.base import Rejected
from data_adapters.errors import BadFileError
from data_adapters.images.adapter import ImagesAdapter

ROOT = Path(os.environ.get("LEJEPA_REAL_DATA", ""), "formats", "histo").expanduser()
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("LEJEPA_REAL_DATA") or not ROOT.is_dir(), reason="LEJEPA_REAL_DATA has no formats/histo"
    ),
]


def test_the_images_adapter_passes_over_no_file():
    adapter = ImagesAdapter(global_size=64, local_size=32)
    found = list(adapter.scan(ROOT))
    assert len(found) == sum(1 for path in ROOT.iterdir())
    refused, read = 0, 0
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason
            refused += 1
            continue
        try:
            adapter.verify(item)
        except BadFileError as error:
            assert error.cause
            refused += 1
            continue
        assert adapter.prepare(item).shape == (1, 3, 64, 64)
        assert len(adapter.views(adapter.read(item, np.random.default_rng(0)), np.random.default_rng(0))) == 8
        read += 1
    assert read >= 17
    assert read + refused == len(found)
    deep = {Path(item.uri).name for item in found if isinstance(item, Rejected) and "uint16" in item.reason}
    assert deep == {
        "libvips_sample.tif",
        "pillow_12bit.cropped.tif",
        "pillow_16bit.cropped.jp2",
        "pillow_16bit.cropped.tif",
    }
