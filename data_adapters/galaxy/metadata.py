"""What headers, file names and the catalogue say of a cut-out: its bands and where it lies on the sky."""

import dataclasses
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_adapters.base import Record
from data_adapters.errors import BadFileError, require
from data_adapters.galaxy.options import UNNAMED

# Filters by which an extension may be named. Other extension names (SCI, CCD3) name detectors.
FILTER_NAME = re.compile(r"[ugrizyYJHKUBVRI]|Ks|FUV|NUV|VIS|W[1-4]|NISP_?[YJH]|F\d{3,4}(?:W|M|N|LP|X)")
# Extensions that accompany an image: errors, weights, masks, models of the point spread.
COMPANION = re.compile(
    r".*(?:ERR|ERROR|SIGMA|UNCERT|VAR|VARIANCE|IVAR|INVVAR|INVERSE_VARIANCE|WT|WGT|WHT|WEIGHT|DQ|MSK|MASK|MASKBITS|"
    r"FLAGS|CON|CTX|PSF|NEXP|EXP|TIME)(?:[_-].*)?",
    re.IGNORECASE,
)
# Files that accompany an image where nothing but the survey's file name tells so: weight and data-quality maps of the
# DECam and Mosaic pipelines (c4d_..._oow_r_...), maps beside coadds of the Legacy Surveys (...-invvar-r.fits.fz).
COMPANION_FILE = re.compile(
    r"_o[ops][dw]_|-(?:invvar|maskbits|nexp|psfsize|galdepth|psfdepth|depth|chi2|model|blobmodel|resid)[-.]",
    re.IGNORECASE,
)
NAME_BANDS = (
    "Name the bands in channel order with the option bands, such as bands=g,r,z, or in the catalogue's column bands."
)
NSIDE = 64  # HEALPix cells of 0.9 degrees: overlapping cut-outs and surveys of one field share a cell
Kind = Literal["flux", "picture"]
Bands = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One image of a file.

    Attributes:
        item: its row in a file of several, else empty.
        label: as the file gives it.
        facts: of `Record.meta`, as far as the file tells: `ra`, `dec` (degrees), `pixel_scale` (arcsec), `unit`, and
            how it was taken (`acquisition`).
    """

    item: str = ""
    label: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CutoutFile:
    """What the headers of one file say; all its images have one size.

    Attributes:
        kind: calibrated flux, or display colours.
        planes: names of all planes in the file's order, or None where nothing in the file names them.
        count: number of planes.
        width: pixels.
        height: pixels.
        bits: of a stored value.
        images: one for each record.
    """

    kind: Kind
    planes: Sequence[str] | None
    count: int
    width: int
    height: int
    bits: int
    images: Sequence[Cutout] = (Cutout(),)


ACQUISITION = {  # of FITS headers: keyword -> (key of meta, kind)
    **{"SURVEY": ("survey", str), "TELESCOP": ("telescope", str), "INSTRUME": ("instrument", str)},
    **{"SEEING": ("seeing", float), "AIRMASS": ("airmass", float), "EXPTIME": ("exposure_s", float)},
}


def acquisition(*headers: Any) -> dict[str, str | float]:
    """How the image was taken, by the first header that says so: survey, telescope, seeing (arcsec), exposure (s)."""
    found: dict[str, str | float] = {}
    for keyword, (key, kind) in ACQUISITION.items():
        for header in headers:
            value = header.get(keyword)
            if kind is str and isinstance(value, str) and value.strip():
                found.setdefault(key, value.strip())
            elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
                if math.isfinite(value) and value > 0:
                    found.setdefault(key, float(value))
    return found


def header_band(*headers: Any) -> str | None:
    """The filter that the first header with BAND or FILTER names: its first word (NOAO adds the serial number)."""
    for header in headers:
        for key in ("BAND", "FILTER"):
            value = header.get(key)
            if isinstance(value, str) and value.strip():
                return value.split()[0]
    return None


def plane_bands(header: Any, count: int) -> tuple[str, ...] | None:
    """Names of a cube's planes: BANDS = 'grz' or 'g,r,z', or BAND0..BANDn (Legacy Surveys) or BAND1..BANDn."""
    text = header.get("BANDS")
    if isinstance(text, str):
        names = re.split(r"[,\s]+", text.strip()) if re.search(r"[,\s]", text.strip()) else list(text.strip())
        if len(names) == count:
            return _distinct(names)
    for first in (0, 1):
        numbered = [header.get(f"BAND{k}") for k in range(first, first + count)]
        if all(isinstance(name, str) and name.strip() for name in numbered):
            return _distinct([str(name).strip() for name in numbered])
    return None


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise BadFileError("a cube whose header names one band twice", remedy="Correct the keywords BANDS or BANDn.")
    return tuple(names)


def choose(found: tuple[str, ...] | None, count: int, wanted: tuple[str, ...] | None) -> tuple[list[int], list[str]]:
    """Indices and names of the planes to use.

    Args:
        found: the names in the file, or None.
        count: planes in the file.
        wanted: the archive's bands; None takes what the file names.

    Raises:
        BadFileError: unnamed planes without `wanted`, or other bands than `wanted`.
    """
    if found is None and count == 1 and wanted is None:
        return [0], [UNNAMED]
    if found is None and wanted is None:
        raise BadFileError(f"{count} planes whose bands the header does not name", remedy=NAME_BANDS)
    if found is None:
        assert wanted is not None
        if count != len(wanted):
            raise BadFileError(
                f"{count} unnamed planes, where the archive's bands are {','.join(wanted)}", remedy=NAME_BANDS
            )
        return list(range(count)), list(wanted)
    if wanted is None:
        return list(range(count)), list(found)
    if not set(wanted) <= set(found):
        raise BadFileError(
            f"bands {','.join(found)} differ from the archive's {','.join(wanted)}",
            remedy="Set the option bands to bands that every file has, or split the archive by bands.",
        )
    return [found.index(name) for name in wanted], list(wanted)


def named_bands(record: Record) -> tuple[str, ...] | None:
    """The names of all planes of the record's file, in its order; None where nothing names them."""
    text = record.meta.get("file_bands")
    return None if text is None else tuple(str(text).split(","))


def settle(record: Record, wanted: tuple[str, ...] | None) -> Record:
    """`record`, its bands settled between header, catalogue (column `bands`: all planes of the file) and option.

    Raises:
        BadFileError: header and catalogue disagree, or neither they nor `wanted` name the planes.
    """
    found, count = named_bands(record), int(record.meta["planes"])
    stated = tuple(re.split(r"[,;\s]+", str(record.meta["bands"]).strip())) if "bands" in record.meta else None
    if stated is not None and found is not None and stated != found:
        raise BadFileError(
            f"bands {','.join(stated)} in the catalogue, but {','.join(found)} in the file",
            remedy="Correct the catalogue's column bands or the header.",
        )
    if stated is not None and not len(stated) == len(set(stated)) == count:
        raise BadFileError(
            f"bands {','.join(stated)} in the catalogue for a file of {count} planes",
            remedy="Name every plane of the file once, in its order, in the catalogue's column bands.",
        )
    names = found or stated
    _, chosen = choose(names, count, wanted)
    meta = {**record.meta, "bands": ",".join(chosen)}
    return dataclasses.replace(record, meta={**meta, "file_bands": ",".join(names)} if names else meta)


def sky_cell(ra: float, dec: float) -> str:
    """The HEALPix cell (nside 64, nested) of a position in degrees (ICRS), as a group name.

    Raises:
        BadFileError: no position on the sky.
    """
    if not (math.isfinite(ra) and math.isfinite(dec) and -360 <= ra <= 360 and -90 <= dec <= 90):
        raise BadFileError("ra or dec outside the sky", remedy="Give both in degrees: ra 0 to 360, dec -90 to 90.")
    healpix = require("astropy_healpix", extra="galaxy")
    units = require("astropy.units", extra="galaxy")
    cell = healpix.lonlat_to_healpix(ra % 360 * units.deg, dec * units.deg, nside=NSIDE, order="nested")
    return f"sky-{NSIDE}-{int(cell)}"


def parse_angle(value: object, *, hours: bool) -> float | None:
    """Degrees from a number (degrees) or a sexagesimal text such as 11:47:19.05 (hours for ra); None for neither."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip()
    parts = re.fullmatch(r"([+-]?)(\d+)[:\s](\d+)[:\s](\d+(?:\.\d*)?)", text)
    if parts:
        size = int(parts[2]) + int(parts[3]) / 60 + float(parts[4]) / 3600
        return (-size if parts[1] == "-" else size) * (15 if hours else 1)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_NAMES = (
    # IAU designations: J123456.78+012345.6, SDSS J1234+0123, and with p and m for the signs
    re.compile(r"J(\d\d)(\d\d)(\d\d(?:\.\d+)?)?([+pm-])(\d\d)(\d\d)(\d\d(?:\.\d+)?)?(?![\d])", re.IGNORECASE),
    re.compile(r"(?<!\d)(\d\d)(\d\d)(\d\d\.\d+)([+-])(\d\d)(\d\d)(\d\d(?:\.\d+)?)(?!\d)"),
    # 12h34m56.7s+01d23m45s
    re.compile(r"(?<!\d)(\d{1,2})h(\d{1,2})m(\d+(?:\.\d+)?)s?[_ ]?([+-]?)(\d{1,2})d(\d{1,2})m(\d+(?:\.\d+)?)s?"),
)
_DEGREES = (
    # ra150.1_dec-2.2
    re.compile(r"(?<![a-z])ra[_=]?(\d{1,3}(?:\.\d+)?)[_, ]*dec[_=]?([+-]?)(\d{1,2}(?:\.\d+)?)(?!\d)", re.IGNORECASE),
    # 150.1163-2.2057; two decimals may be other numbers, so a sign, or arc seconds (three digits), must be there
    re.compile(r"(?<![^_ ,=])(\d{1,3}\.\d\d+)[_, ]*([+-])(\d{1,2}\.\d\d+)(?!\d)"),
    re.compile(r"(?<![^_ ,=-])(\d{1,3}\.\d{3,})[_, ]()(\d{1,2}\.\d{3,})(?!\d)"),
)


def position_in(name: str) -> tuple[float, float] | None:
    """Ra and dec (degrees) that a file's name without its suffix holds, or None.

    IAU designations, sexagesimal angles, and two numbers of degrees with decimals, as surveys and their cut-out
    services write them.
    """
    for pattern in _NAMES:
        found = pattern.search(name)
        if found:
            h, m, s, sign, d, arcmin, arcsec = (part or "0" for part in found.groups())
            if max(int(m), int(arcmin)) < 60 and max(float(s), float(arcsec)) <= 60:
                dec = int(d) + int(arcmin) / 60 + float(arcsec) / 3600
                return _on_sky(15 * (int(h) + int(m) / 60 + float(s) / 3600), -dec if sign in "-mM" else dec)
    for pattern in _DEGREES:
        found = pattern.search(name)
        if found:
            return _on_sky(float(found[1]), float(found[2] + found[3]))
    return None


def _on_sky(ra: float, dec: float) -> tuple[float, float] | None:
    return (ra, dec) if ra < 360 and abs(dec) <= 90 else None


def locate(*headers: Any) -> dict[str, float]:
    """`ra` and `dec` (degrees, ICRS) of the image centre and `pixel_scale` (arcsec), as far as FITS headers tell.

    The first header with a celestial WCS decides; without one, the keywords RA and DEC of the pointing.
    """
    for header in headers:
        found = _from_wcs(header)
        if found:
            return found
    for header in headers:
        ra, dec = parse_angle(header.get("RA"), hours=True), parse_angle(header.get("DEC"), hours=False)
        if ra is not None and dec is not None:
            return {"ra": ra, "dec": dec}
    return {}


def _from_wcs(header: Any) -> dict[str, float]:
    if not str(header.get("CTYPE1", "")).startswith(("RA", "DEC", "GLON", "GLAT", "ELON", "ELAT")):
        return {}
    wcs_module = require("astropy.wcs", extra="galaxy")
    utils = require("astropy.wcs.utils", extra="galaxy")
    log = logging.getLogger("astropy")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy comments on every non-standard card, in both ways
        log.setLevel(logging.WARNING)
        try:
            wcs = wcs_module.WCS(header).celestial
            width, height = int(header["NAXIS1"]), int(header["NAXIS2"])
            centre = wcs.pixel_to_world((width - 1) / 2, (height - 1) / 2).icrs
            scale = float(utils.proj_plane_pixel_scales(wcs).mean() * 3600)
            found = {"ra": float(centre.ra.deg), "dec": float(centre.dec.deg), "pixel_scale": scale}
        except Exception:  # wcslib refuses some headers of real telescopes; the image is good without a position
            return {}
        finally:
            log.setLevel(level)
    return found if all(math.isfinite(value) for value in found.values()) else {}
