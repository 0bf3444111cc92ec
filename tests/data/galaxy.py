"""Miniature archives of galaxies: FITS in the variants of real surveys, Galaxy10-style HDF5, PNG with a catalogue."""

from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits
from PIL import Image

PIXEL = 0.262  # arcsec
BRIGHTNESS = {"g": 0.6, "r": 1.0, "z": 1.4}  # relative peak flux, so that each band can be told from the others


def source(
    size: int = 48, *, bands: str = "grz", seed: int = 0, noise: float = 0.002, sigma: float = 4.0
) -> np.ndarray:
    """(size, size, bands) float32: an elliptical Gaussian in the middle, in nanomaggies, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    shape = np.exp(-(x**2 + (y / rng.uniform(0.5, 1)) ** 2) / (2 * sigma**2))
    planes = [0.1 * BRIGHTNESS.get(band, 1.0) * shape for band in bands]
    return (np.stack(planes, axis=2) + noise * rng.standard_normal((size, size, len(bands)))).astype(np.float32)


def wcs_cards(size: int, *, ra: float, dec: float, scale: float = PIXEL) -> dict[str, object]:
    """Cards of a tangent projection whose centre is the image's."""
    degrees = scale / 3600
    return {
        **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec},
        **{"CRPIX1": (size + 1) / 2, "CRPIX2": (size + 1) / 2, "CD1_1": -degrees, "CD2_2": degrees},
        **{"CD1_2": 0.0, "CD2_1": 0.0},
    }


def write_cube(path: Path, flux: np.ndarray, *, bands: str | None = "grz", ra: float = 150.0, dec: float = 2.0) -> Path:
    """A cube with bands first, big-endian float32, as the Legacy Surveys viewer gives it."""
    header = fits.Header(wcs_cards(flux.shape[0], ra=ra, dec=dec))
    if bands is not None:
        header["BANDS"] = bands
        header["SURVEY"] = "LegacySurvey"
        for number, band in enumerate(bands):
            header[f"BAND{number}"] = band
    fits.PrimaryHDU(np.moveaxis(flux, 2, 0).astype(">f4"), header).writeto(path)
    return path


def write_band_extensions(path: Path, flux: np.ndarray, *, bands: str = "grz", key: str = "EXTNAME") -> Path:
    """An empty primary, one extension a band, and a mask extension beside them."""
    hdus = [fits.PrimaryHDU()]
    for channel, band in enumerate(bands):
        hdu = fits.ImageHDU(flux[..., channel])
        hdu.header[key] = band
        hdus.append(hdu)
    hdus.append(fits.ImageHDU(np.zeros(flux.shape[:2], np.int16), name="MASK"))
    fits.HDUList(hdus).writeto(path)
    return path


def write_compressed(path: Path, counts: np.ndarray, *, algorithm: str, band: str = "r") -> Path:
    """One band of int16 counts, losslessly Rice- or Hcompress-compressed (tile-compressed binary table)."""
    hdu = fits.CompImageHDU(counts.astype(np.int16), compression_type=algorithm)
    hdu.header["FILTER"] = f"{band} DECam SDSS c0002 6415.0 1480.0"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


def write_scaled(path: Path, flux: np.ndarray, *, band: str = "r") -> Path:
    """One band as int16 with BSCALE and BZERO."""
    hdu = fits.PrimaryHDU(flux[..., 0].copy())
    hdu.header["FILTER"] = band
    hdu.scale("int16", bscale=1e-5, bzero=0.05)
    hdu.writeto(path)
    return path


def write_single(path: Path, image: np.ndarray, **cards: object) -> Path:
    """One two-dimensional image of any dtype."""
    fits.PrimaryHDU(image, fits.Header(cards)).writeto(path)
    return path


def write_table(path: Path) -> Path:
    """A catalogue without an image."""
    column = fits.Column(name="flux", format="E", array=np.arange(5, dtype=np.float32))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])]).writeto(path)
    return path


def picture(size: int = 48, *, seed: int = 0) -> np.ndarray:
    """(size, size, 3) uint8, the source as a survey's colour JPEG would show it."""
    flux = source(size, seed=seed)
    return np.clip(20 + flux[..., ::-1] * 1500, 0, 255).astype(np.uint8)


def write_hdf5(path: Path, rows: int = 6, *, size: int = 48, channels_first_flux: bool = False) -> Path:
    """Galaxy10 DECaLS in small: uint8 RGB, or float32 flux (rows, bands, height, width), with labels and positions."""
    with h5py.File(path, "w") as file:
        if channels_first_flux:
            file["images"] = np.stack([np.moveaxis(source(size, seed=row), 2, 0) for row in range(rows)])
            file["images"].attrs["bands"] = "g,r,z"
        else:
            file["images"] = np.stack([picture(size, seed=row) for row in range(rows)])
        file["ans"] = np.arange(rows, dtype=np.uint8) % 3
        file["ra"] = (150 + 10.0 * np.arange(rows)) % 360
        file["dec"] = np.linspace(-30, 30, rows)
        file["pxscale"] = np.full(rows, PIXEL)
    return path


def write_pictures(folder: Path, count: int = 4, *, size: int = 48) -> Path:
    """PNG files and a catalogue with positions; the last has no position and the first its own group."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,label,group,ra,dec"]
    for number in range(count):
        Image.fromarray(picture(size, seed=number)).save(folder / f"galaxy{number}.png")
        place = "," if number == count - 1 else f"{10 + 20 * number},{5 * number}"
        lines.append(
            f"galaxy{number}.png,{('spiral', 'elliptical')[number % 2]},{'field-1' if not number else ''},{place}"
        )
    catalog = folder / "labels.csv"
    catalog.write_text("\n".join(lines) + "\n")
    return catalog
