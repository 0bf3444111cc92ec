"""Awkward pictures of Pillow's, libvips' and openslide's own test suites: read as Pillow does, or refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from data_adapters.base import Rejected
from data_adapters.errors import BadFileError
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.raster import raster_info, read_raster

ROOT = Path(os.environ.get("LEJEPA_REAL_DATA", ""), "formats", "histo").expanduser()
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("LEJEPA_REAL_DATA") or not ROOT.is_dir(), reason="LEJEPA_REAL_DATA has no formats/histo"
    ),
]
REFUSED = {
    "libvips_CMU-1-Small-Region.svs": "several frames",
    "openslide_small.svs": "several frames",
    "openslide_unreadable.svs": "several frames",
    "pillow_multipage_out_of_order.tiff": "several frames",
    "openslide_unopenable.tiff": "damaged",
    "pillow_broken.png": "not a picture",
    "pillow_broken_data_stream.png": "damaged",
    "pillow_truncated_jpeg.jpg": "truncated",
    "pillow_decompression_bomb.gif": "million pixels",
    "pillow_hopper.Lab.tif": "LAB",
    "pillow_tiff_strip_cmyk_jpeg.tif": "CMYK",
    "pillow_p_trns_single.png": "transparent",
    "highdicom_seg_image_sm_control_labelmap_palette_color.dcm": "not a picture",
    "openslide_boxes_0.dcm": "not a picture",
}


def test_every_picture_is_read_as_pillow_does_or_refused_for_its_reason():
    checked = 0
    for path in sorted(ROOT.iterdir()):
        if path.name in REFUSED:
            with pytest.raises(BadFileError, match=REFUSED[path.name]):
                read_raster(path)
            continue
        pixels, info = read_raster(path), raster_info(path)
        assert (info.height, info.width) == pixels.shape[:2]
        assert info.dtype == pixels.dtype
        if pixels.dtype == np.uint16 and path.suffix == ".tif":
            expected = tifffile.imread(path)  # Pillow cuts 16-bit colour to 8 bits
        elif pixels.dtype == np.uint16:
            expected = np.asarray(Image.open(path))
        else:
            with Image.open(path) as image:
                expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB" if pixels.ndim == 3 else "L"))
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)
        checked += 1
    assert checked >= 20


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
