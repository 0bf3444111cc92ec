"""Which bands a FITS header or a catalogue names, and which of them an archive uses."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from data_adapters.base import Record
from data_adapters.errors import BadFileError
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
