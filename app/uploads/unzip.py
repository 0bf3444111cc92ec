"""Zip files from clients (a DICOM series, usually): unpacked under our own names, with everything counted."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from app.core.settings import Settings
from app.uploads.bodies import safe_suffix
from data_adapters.errors import BadFileError
from data_adapters.files import APPLE_DOUBLE, SIDECARS, SYSTEM

PIECE = 1 << 20
MAX_RATIO = 200  # unpacked bytes for one packed byte; empty scanner slices reach about 100
RATIO_FROM = 16 << 20  # bytes below which the ratio does not matter
MAX_DIRECTORY_ENTRY = 512  # bytes of one entry in the zip's directory, with its name
LOCAL_HEADER = 30  # bytes before an entry's name
END, LOCATOR, END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
TAIL = 65_557 + LOCATOR.size  # bytes at a zip's end that may hold its end record and a comment
LEFT_BEHIND = (*SYSTEM, "dicomdir", "__macosx")  # by operating systems and scanners: files, or folders with all in them
UTF8 = 1 << 11  # the flag of an entry whose name is UTF-8 (APPNOTE, appendix D)


@dataclass(frozen=True)
class Contents:
    """What lies in a zip file, by the names that its maker gave.

    Attributes:
        names: of the entries that may be images, by the names under which `unzip` unpacks them.
        skipped: names of the others (tables, README.md, hidden files), which are not unpacked.
    """

    names: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


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
        check_directory(archive, settings)
        with zipfile.ZipFile(archive) as source:
            entries = [entry for entry in source.infolist() if not entry.is_dir()]
            if len(entries) > settings.max_zip_entries:
                raise _too_many(settings)
            for entry in entries:
                _check(entry)
            _check_overlaps(entries)
            # Declared sizes first: no entry gives more than it declares, so most bombs end here.
            _check_written(sum(entry.file_size for entry in entries), packed, budget)
            wanted = named(entries)
            if not wanted:
                raise BadFileError(
                    "The zip file holds no image: tables, texts, hidden files and what a system leaves do not count.",
                    remedy="Zip the images themselves, under names that do not begin with a dot.",
                )
            for entry, name in wanted:
                target = folder / name
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


def check_directory(archive: Path, settings: Settings) -> None:
    """Refuse a zip whose directory is too long, before zipfile reads it.

    Raises:
        BadFileError: it has more entries than the limit, by their least length.
    """
    with archive.open("rb") as stream:
        if _directory_bytes(stream, archive.stat().st_size) > settings.max_zip_entries * MAX_DIRECTORY_ENTRY:
            raise _too_many(settings)


def _too_many(settings: Settings) -> BadFileError:
    return BadFileError(f"The zip file has more than {settings.max_zip_entries} entries.", remedy="Send it in parts.")


def _directory_bytes(stream: BinaryIO, size: int) -> int:
    """The length of the zip's directory by its end record: zipfile reads all of it, however few entries it tells.

    The record is the last one in the file's last 64 KiB (APPNOTE 4.3.16), with a ZIP64 record before it where one
    stands (4.3.14, 4.3.15); 0 where there is none.
    """
    start = max(0, size - TAIL)
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END.size:
        return 0
    found = int(END.unpack_from(tail, at)[5])
    if at >= LOCATOR.size and tail[at - LOCATOR.size :].startswith(b"PK\x06\x07"):
        stream.seek(LOCATOR.unpack_from(tail, at - LOCATOR.size)[2])
        record = stream.read(END64.size)
        if len(record) == END64.size:
            found = max(found, int(END64.unpack(record)[8]))
    return found


def _check_overlaps(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Each entry's bytes are its own; where they are shared, a small file unpacks to any size."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise BadFileError("Entries of the zip file overlap.", remedy="Zip the files again.")
        end = entry.header_offset + LOCAL_HEADER + entry.compress_size


def named(entries: Iterable[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, str]]:
    """The entries that may be images, each with the name that it is unpacked under."""
    wanted = sorted((entry for entry in entries if not entry.is_dir() and _is_image(name_of(entry))), key=name_of)
    return [(entry, f"{number:05d}{safe_suffix(name_of(entry))}") for number, entry in enumerate(wanted)]


def contents(archive: Path, settings: Settings) -> Contents:
    """The names in a zip file; none where it cannot be read, which `unzip` refuses with a reason."""
    try:
        check_directory(archive, settings)
        with zipfile.ZipFile(archive) as source:
            entries = source.infolist()
    except (BadFileError, zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError):
        return Contents()
    others = (name_of(entry) for entry in entries if not entry.is_dir() and not _is_image(name_of(entry)))
    return Contents(
        names={unpacked: name_of(entry) for entry, unpacked in named(entries)},
        skipped=sorted(name for name in others if not _is_left_behind(name)),
    )


def read_entry(archive: Path, name: str, *, most: int) -> bytes:
    """The content of one file in a zip that `contents` could read, by its name there.

    Raises:
        BadFileError: it cannot be read, or is larger than `most` bytes.
    """
    remedy = "Zip the files again, without a password."
    try:
        with zipfile.ZipFile(archive) as source:
            entry = next(one for one in source.infolist() if name_of(one) == name)
            _check(entry)
            with source.open(entry) as stream:
                found = stream.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadFileError(f"A table in the zip file is damaged ({type(error).__name__}).", remedy=remedy) from None
    if len(found) > most:
        raise BadFileError(f"A table in the zip file is larger than {most} bytes.", remedy="Send a smaller one.")
    return found


def name_of(entry: zipfile.ZipInfo) -> str:
    """An entry's name as its maker sees it: the Finder and others write UTF-8 without the flag that says so."""
    if entry.flag_bits & UTF8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except ValueError:
        return entry.filename


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
    hidden = any(part.startswith(".") and part != "." for part in _parts(name))
    return not (hidden or _is_left_behind(name) or name.lower().endswith(SIDECARS))


def _is_left_behind(name: str) -> bool:
    return any(part in LEFT_BEHIND or part.startswith((APPLE_DOUBLE, "__macosx")) for part in _parts(name.lower()))


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/")
