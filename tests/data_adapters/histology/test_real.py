"""Real awkward files: each is read right or refused with a reason, and nothing dies."""

import os
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image, ImageOps

from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.histology.adapter import HistologyAdapter

ROOT = Path(os.environ.get("LEJEPA_REAL_DATA", "")).expanduser()
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get("LEJEPA_REAL_DATA"), reason="LEJEPA_REAL_DATA is not set"),
    pytest.mark.filterwarnings("ignore"),
]

# What must come out: a record whose pixels are compared with the reference reader, or this refusal.
REFUSED = {
    "highdicom_seg_image_sm_control_labelmap_palette_color.dcm": "DICOM of another kind",
    "libvips_1bit.tif": "under 32 pixels",
    "libvips_4bit.tif": "under 32 pixels",
    "libvips_avif-orientation-6.avif": "not a format",
    "libvips_cramps.gif": "not a format",
    "libvips_sample.tif": "16 bits",
    "openslide_boxes_0.dcm": "smaller than one region",
    "openslide_boxes_1.dcm": "smaller than one region",
    "openslide_boxes.tiff": "mpp out of range",
    "openslide_small.svs": "smaller than one region",
    "openslide_unopenable.tiff": "not an image",
    "openslide_unreadable.svs": "smaller than one region",
    "pillow_12bit.cropped.tif": "12 bits",
    "pillow_16bit.cropped.jp2": "not a format",
    "pillow_16bit.cropped.tif": "16 bits",
    "pillow_broken.png": "not an image",
    "pillow_broken_data_stream.png": "damaged",
    "pillow_decompression_bomb.gif": "not a format",
    "pillow_hopper.Lab.tif": "CIELAB",
    "pillow_hopper_webp_write.ppm": "not a format",
    "pillow_multipage_out_of_order.tiff": "under 32 pixels",
    "pillow_tiff_strip_cmyk_jpeg.tif": "CMYK",
    "pillow_truncated_jpeg.jpg": "damaged",
    "highdicom_sm_image.dcm": "no tissue",
    "highdicom_sm_image_jpegls_nobot.dcm": "cannot open",
}


@pytest.mark.parametrize("folder", ["histo", "slides"])
def test_every_awkward_file_is_read_right_or_refused(folder: str) -> None:
    adapter = HistologyAdapter()
    expected = {p.name for p in (ROOT / "formats" / folder).iterdir()}
    seen = set()
    for found in adapter.scan(ROOT / "formats" / folder):
        names = [
            Path(p).name for p in (found.meta.get("files", [found.uri]) if isinstance(found, Record) else [found.uri])
        ]
        seen.update(names)
        for name in names:
            if isinstance(found, Rejected):
                assert REFUSED.get(name, "a picture") in found.reason, name
            elif name in REFUSED:
                with pytest.raises(BadFileError, match=REFUSED[name]):
                    adapter.verify(found)
            else:
                compare(adapter, found)
    assert seen == expected


def compare(adapter: HistologyAdapter, record: Record) -> None:
    pixels = adapter.read(record, np.random.default_rng(0)).pixels
    assert adapter.prepare(record).shape[1:] == (3, 224, 224)
    assert len(adapter.views(adapter.read(record, np.random.default_rng(0)), np.random.default_rng(0))) == 8
    if record.meta["histology"]["kind"] == "tile":
        with Image.open(record.uri) as image:
            image.load()
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        exact = np.array(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))
        assert record.meta["size"] == [exact.shape[1], exact.shape[0]]
        assert np.array_equal(pixels, exact)


def test_aperio_region_equals_openslide() -> None:
    path = ROOT / "formats" / "histo" / "libvips_CMU-1-Small-Region.svs"
    adapter = HistologyAdapter(mpp=0.499)
    marked = Record(uri=str(path), group="g", meta={"region": [500, 700, 224, 224]})
    with openslide.OpenSlide(path) as slide:
        exact = np.array(slide.read_region((500, 700), 0, (224, 224)).convert("RGB"))
    assert np.array_equal(adapter.prepare(marked)[0].numpy().transpose(1, 2, 0), exact)


def test_lymph_node_tiles() -> None:
    """PatchCamelyon, 96 px: every fiftieth tile reads and makes views of its own size."""
    adapter = HistologyAdapter(global_size=96, local_size=48)
    paths = sorted((ROOT / "histology" / "tiles").iterdir())[::50]
    assert len(paths) > 50
    for path in paths:
        (record,) = adapter.scan(path)
        assert isinstance(record, Record)
        assert record.meta["size"] == [96, 96]
        with Image.open(path) as image:
            assert np.array_equal(adapter.prepare(record)[0].numpy().transpose(1, 2, 0), np.array(image.convert("RGB")))
