"""Every file of the formats folder gives what formats_rows.py says, pixel for pixel as another reader sees it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

import data_adapters
from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from tests.data_adapters import formats_independent as independent
from tests.data_adapters.formats_table import DOCUMENT, ORIGINS, SECTIONS, Row, document, rows

REAL = os.environ.get("LEJEPA_REAL_DATA", "")
ROOT = Path(REAL).expanduser() / "formats"
real = pytest.mark.skipif(not REAL or not ROOT.is_dir(), reason="LEJEPA_REAL_DATA has no folder formats")
ROWS = list(rows())
FLOAT16 = 2e-3  # stacks are kept in half precision


def scanned(adapter: Any, path: Path) -> Record | Rejected:
    """The one thing that scan finds in a file, after a look at its pixels."""
    (found,) = adapter.scan(path)
    if isinstance(found, Rejected):
        return found
    try:
        adapter.verify(found)
    except BadFileError as error:
        return Rejected(uri=found.uri, reason=error.cause, remedy=error.remedy)
    return found


def mri(path: Path, record: Record, options: dict[str, Any]) -> str:
    """Prepared slices are slices of the mapped volume, in its order."""
    meta = record.meta
    if meta["reader"] == "nifti":
        values, spacing = independent.volume(path, options.get("volume"))
        assert tuple(meta["size"]) == values.shape and np.allclose(meta["spacing"], spacing, atol=1e-3)
        size = f"{_by(meta['size'])} voxels of {_by(meta['spacing'])} mm"
    else:
        values, spacing = independent.dicom_slice(path), None
        assert meta["size"] == list(values.shape[::-1])
        size = f"{_by(meta['size'])} px of {_by(meta['spacing'])} mm"
    squares = independent.mri_squares(values, spacing)
    side = squares.shape[1]
    adapter = data_adapters.create("mri", **options, global_size=side, local_size=16)
    prepared = adapter.prepare(record)[:, 0].numpy()
    distances = [np.abs(squares - image).max(axis=(1, 2)) for image in prepared]
    assert max(d.min() for d in distances) < FLOAT16
    order = [int(d.argmin()) for d in distances]
    assert order == sorted(set(order)) and len(order) == (9 if len(squares) > 17 else len(order))
    return f"{size}, {meta['bits']} bit, mean {values.mean():.6g}"


def galaxy(path: Path, record: Record, options: dict[str, Any]) -> str:
    """Flux as stored, exactly."""
    meta, values = record.meta, independent.flux(path)
    adapter = data_adapters.create("galaxy", **options, background="none")
    pixels = adapter.read(record, np.random.default_rng(0))
    good = np.isfinite(values)
    np.testing.assert_array_equal(pixels[good], values[good])
    assert meta["size"] == [values.shape[1], values.shape[0]]
    scale = f", {meta['pixel_scale']:.3g} arcsec" if "pixel_scale" in meta else ""
    bands = meta["bands"]
    return (
        f"{_by(meta['size'])} px{scale}, {meta['bits']} bit, bands {bands}, mean {values[good].mean(dtype=float):.6g}"
    )


def histology(path: Path, record: Record, options: dict[str, Any]) -> str:
    """Tiles on white, exactly; regions of slides as openslide gives them."""
    adapter, meta = data_adapters.create("histology", **options), record.meta
    if "mpp" not in meta:
        values = independent.on_white(_colour(independent.picture(path)))
        np.testing.assert_array_equal(adapter.read(record, np.random.default_rng(0)).pixels, values)
        assert meta["size"] == [values.shape[1], values.shape[0]]
        return f"{_by(meta['size'])} px, mean {values.mean():.6g}"
    with openslide.OpenSlide(path) as slide:
        values = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    corner = [meta["size"][0] // 3, meta["size"][1] // 3]
    fixed = data_adapters.create("histology", **{**options, "mpp": meta["mpp"]})
    marked = Record(uri=str(path), group="", meta={"region": [*corner, 224, 224]})
    part = values[corner[1] : corner[1] + 224, corner[0] : corner[0] + 224]
    np.testing.assert_array_equal(fixed.prepare(marked)[0].numpy().transpose(1, 2, 0), part)
    return f"{_by(meta['size'])} px of {meta['mpp']:.4g} um, mean {values.mean():.6g}"


def images(path: Path, record: Record, options: dict[str, Any]) -> str:
    """8 bits as stored; deeper ones by the option's window or percentiles."""
    adapter, meta = data_adapters.create("images", **options), record.meta
    pixels, values = adapter.read(record, np.random.default_rng(0)), independent.picture(path)
    expected: np.ndarray = values if values.ndim == 3 else values[..., None]
    if "intensity" in options:
        low, high = options.get("intensity_range", (0.5, 99.5))
        if options["intensity"] == "percentile":
            low, high = np.percentile(values, (low, high))
        expected = np.clip((expected.astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(
        pixels, np.broadcast_to(expected, pixels.shape), atol=1e-6 if "intensity" in options else 0
    )
    assert meta["size"] == [values.shape[1], values.shape[0]] and meta["bits"] == 8 * values.dtype.itemsize
    return f"{_by(meta['size'])} px, {meta['bits']} bit, {meta['channels']} channels, mean {values.mean():.6g}"


CHECKS = {"mri": mri, "galaxy": galaxy, "histology": histology, "images": images}


def _by(numbers: Any) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _colour(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def verdict(row: Row) -> str:
    """What the adapter makes of the file, after comparison with another reader."""
    path = ROOT / row.folder / row.file
    found = scanned(data_adapters.create(row.adapter, **row.options), path)
    if isinstance(found, Rejected):
        return f"refused: {found.reason}"
    return f"read: {CHECKS[row.adapter](path, found, row.options)}"


@pytest.mark.real
@real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "row", ROWS, ids=[f"{row.adapter}-{row.file}{'-with-options' * bool(row.options)}" for row in ROWS]
)
def test_verdict(row: Row) -> None:
    assert verdict(row) == row.verdict


@pytest.mark.real
@real
@pytest.mark.parametrize(("folder", "adapter"), [section[:2] for section in SECTIONS])
def test_no_file_is_left_out(folder: str, adapter: str) -> None:
    told = {row.file for row in ROWS if (row.folder, row.adapter) == (folder, adapter) and not row.options}
    assert told == {path.name for path in (ROOT / folder).iterdir()}


def test_the_document_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()
    assert all(row.file.startswith(tuple(ORIGINS)) for row in ROWS)
    assert all(row.verdict.startswith(("read: ", "refused: ")) for row in ROWS)
