"""Flux survives every FITS container to float32, and geometry without rotation keeps flux and surface brightness."""

import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_adapters.galaxy.adapter import GalaxyAdapter
from data_adapters.galaxy.recipe import Geometry, resample
from tests.data.galaxy import source

FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
FLOATS, INTEGERS = (">f4", ">f8"), (">i2", ">i4", "u1")


def container(kind: str, planes: np.ndarray, bands: str) -> fits.HDUList:
    """One of the ways in which surveys store the planes (bands, H, W)."""
    if kind == "cube":
        hdu = fits.PrimaryHDU(planes)
        hdu.header["BANDS"] = bands
        return fits.HDUList([hdu])
    hdus = []
    for plane, band in zip(planes, bands, strict=True):
        lossless = {"compression_type": "GZIP_2", "quantize_level": 0} if planes.dtype.kind == "f" else {}
        made = fits.CompImageHDU(plane, **lossless) if kind == "compressed" else fits.ImageHDU(plane)
        made.header["FILTER"] = band
        hdus.append(made)
    return fits.HDUList([fits.PrimaryHDU(), *hdus])


def read(hdus: fits.HDUList, suffix: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        hdus.writeto(path)
        adapter = GalaxyAdapter(background="none")
        (record,) = adapter.scan(path)
        return adapter.pixels(record)


@FAST
@given(
    kind=st.sampled_from(["cube", "extensions", "compressed"]),
    dtype=st.sampled_from([*FLOATS, *INTEGERS]),
    bands=st.sampled_from(["r", "grz", "ugriz"]),
    suffix=st.sampled_from([".fits", ".fits.gz"]),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 99),
)
def test_every_container_keeps_flux_to_float32(kind, dtype, bands, suffix, exponent, seed):
    flux = source(20, bands=bands, seed=seed).astype(np.float64).transpose(2, 0, 1)
    if dtype in FLOATS:
        stored = (flux * 10.0**exponent).astype(dtype)
    else:
        low, high = max(np.iinfo(dtype).min, -(2**23)), min(np.iinfo(dtype).max, 2**23)
        stored = np.interp(flux, (flux.min(), flux.max()), (low, high)).round().astype(dtype)
    if bands == "r" and kind == "cube":
        stored = stored[0]  # a two-dimensional image
    kind = kind if stored.ndim == 3 else "image"
    if kind == "image":
        hdus = fits.HDUList([fits.PrimaryHDU(stored, fits.Header({"FILTER": "r"}))])
        stored = stored[None]
    else:
        hdus = container(kind, stored, bands)
    out = read(hdus, suffix)
    assert out.dtype == np.float32 and out.dtype.isnative
    np.testing.assert_array_equal(out, stored.transpose(1, 2, 0).astype(np.float32))


@FAST
@given(
    bscale=st.floats(1e-6, 1e3),
    offset=st.floats(-5, 5),
    dtype=st.sampled_from([">i2", ">i4"]),
    seed=st.integers(0, 99),
)
def test_scaled_integers_are_scaled_once(bscale, offset, dtype, seed):
    counts = np.random.default_rng(seed).integers(-30000, 30000, (20, 20)).astype(dtype)
    bzero = offset * bscale * 30000
    hdu = fits.PrimaryHDU(counts)
    hdu.header["FILTER"] = "r"
    raw = hdu.header.tostring(padding=True)
    header = fits.Header.fromstring(raw)
    header["BSCALE"], header["BZERO"] = bscale, bzero
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fits"
        body = counts.tobytes()
        path.write_bytes(header.tostring().encode() + body + b"\0" * (-len(body) % 2880))
        adapter = GalaxyAdapter(background="none")
        (record,) = adapter.scan(path)
        out = adapter.pixels(record)[..., 0]
    expected = counts.astype(np.float64) * header["BSCALE"] + header["BZERO"]
    np.testing.assert_allclose(out, expected, rtol=3e-7, atol=3e-7 * abs(bscale) * 2e5)


@FAST
@given(
    zoom=st.floats(0.6, 7.0),
    x=st.floats(-6, 6),
    y=st.floats(-6, 6),
    mirror=st.booleans(),
    bands=st.sampled_from(["r", "grz", "ugriz"]),
)
def test_unrotated_geometry_keeps_flux(zoom, x, y, mirror, bands):
    image = source(200, noise=0, sigma=12, bands=bands)
    size = int(190 / zoom)
    turn = zoom * np.diag([-1.0 if mirror else 1.0, 1.0])
    offset = np.asarray([99.5 + x, 99.5 + y]) - turn @ np.full(2, (size - 1) / 2)
    view = resample(image, Geometry(np.column_stack([turn, offset]), zoom), size)
    np.testing.assert_allclose(view.sum((0, 1)) * zoom**2, image.sum((0, 1)), rtol=0.005)
    flat = resample(np.full((64, 64, 2), 3.5, np.float32), Geometry(np.column_stack([turn, [30.0, 30.0]]), zoom), 20)
    np.testing.assert_allclose(flat, 3.5, rtol=1e-5)  # surface brightness


@FAST
@given(dx=st.integers(-9, 9), dy=st.integers(-9, 9), mirror=st.booleans())
def test_whole_pixel_shifts_and_mirrors_keep_every_value(dx, dy, mirror):
    image = source(40, seed=3)
    turn = np.diag([-1.0 if mirror else 1.0, 1.0])
    start = np.asarray([dx + 10 + (19 if mirror else 0), dy + 10], float)
    view = resample(image, Geometry(np.column_stack([turn, start]), 1.0), 20)
    part = image[dy + 10 : dy + 30, dx + 10 : dx + 30]
    np.testing.assert_allclose(view, part[:, ::-1] if mirror else part, atol=1e-7)
