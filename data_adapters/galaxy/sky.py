"""Where on the sky an image lies: position, pixel scale, and the cell that keeps one object on one side of a split."""

import logging
import math
import re
import warnings
from typing import Any

from data_adapters.errors import BadFileError, require

NSIDE = 64  # HEALPix cells of 0.9 degrees: overlapping cut-outs and surveys of one field share a cell


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
