"""Zip files from clients (a DICOM series, usually): unpacked under our own names, with everything counted."""

import stat
import zipfile
import zlib
from pathlib import Path

from app.settings import Settings
from app.uploads import safe_suffix
from data_adapters.errors import BadFileError

PIECE = 1 << 20
MAX_RATIO = 200  # unpacked bytes for one packed byte; empty scanner slices reach about 100
RATIO_FROM = 16 << 20  # bytes below which the ratio does not matter
NO_IMAGE = ("dicomdir", "thumbs.db", "desktop.ini")


def unzip(archive: Path, folder: Path, *, settings: Settings, budget: int) -> int:
    """Unpack `archive` into the new `folder` as 00000.dcm, 00001.dcm, ... in the order of the entries' names.

    Args:
        archive: the zip file.
        folder: a new folder for the entries.
        settings: limits of entries.
        budget: bytes that may be written; really written bytes are counted, not declared ones.

    Returns:
        Bytes written.

    Raises:
        BadFileError: no zip file, encrypted, links, paths that leave the folder, or beyond a limit.
    """
    folder.mkdir()
    packed = archive.stat().st_size
    written = 0
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [entry for entry in source.infolist() if not entry.is_dir()]
            if len(entries) > settings.max_zip_entries:
                raise BadFileError(
                    f"The zip file has more than {settings.max_zip_entries} entries.", remedy="Send it in parts."
                )
            for entry in entries:
                _check(entry)
            wanted = sorted((entry for entry in entries if _is_image(entry.filename)), key=lambda e: e.filename)
            if not wanted:
                raise BadFileError("The zip file holds no image.", remedy="Zip the files of one series.")
            for number, entry in enumerate(wanted):
                target = folder / f"{number:05d}{safe_suffix(entry.filename)}"
                with source.open(entry) as stream, target.open("xb") as out:
                    while piece := stream.read(PIECE):
                        written += len(piece)
                        _check_written(written, packed, budget)
                        out.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadFileError(
            f"The zip file is damaged or of a kind that is not read ({type(error).__name__}).",
            remedy="Zip the files again, without a password.",
        ) from None
    return written


def _check(entry: zipfile.ZipInfo) -> None:
    # orig_filename: zipfile has already cut `filename` at a null byte and turned the separators.
    name = entry.orig_filename.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0] or "\x00" in name:
        raise BadFileError(
            "The zip file has an entry whose path leaves the zip.", remedy="Zip the folder of the series itself."
        )
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BadFileError("The zip file holds a link or a special file.", remedy="Zip the files themselves.")
    if entry.flag_bits & 1:
        raise BadFileError("The zip file is encrypted.", remedy="Zip the files without a password.")


def _check_written(written: int, packed: int, budget: int) -> None:
    if written > budget:
        raise BadFileError("The zip files unpack to more bytes than are allowed.", remedy="Send fewer files at once.")
    if written > RATIO_FROM and written > MAX_RATIO * packed:
        raise BadFileError(
            f"The zip file unpacks to more than {MAX_RATIO} times its size.", remedy="Send the files without zipping."
        )


def _is_image(name: str) -> bool:
    parts = name.lower().split("/")
    return parts[-1] not in NO_IMAGE and not any(part.startswith((".", "__macosx")) for part in parts)
