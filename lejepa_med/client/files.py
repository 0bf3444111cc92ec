"""Files as they are sent: opened anew for each try, and never under their own names, which may be those of patients."""

import io
import re
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TypeAlias

File: TypeAlias = str | Path | tuple[bytes, str]
"""A path; a folder, which is sent as a zip (a DICOM series); or bytes with their suffix, such as '.nii.gz'."""

Part: TypeAlias = tuple[str, tuple[str, IO[bytes], str]]
SUFFIX = re.compile(r"(\.(nii|fits|fit|fts|dcm))?\.(?=[0-9]*[a-z])[a-z0-9]{1,8}$", re.IGNORECASE)
COMPRESSED = (".gz", ".bz2", ".xz", ".fz")


def suffix_of(name: str) -> str:
    """What a reader needs of a file's name: '.nii.gz', '.png', or nothing; '1.2.840.5' has none."""
    found = SUFFIX.search(name)
    if found is None:
        return ""
    whole = found.group().lower()
    # two suffixes only where the last one is of a compression
    return whole if whole.endswith(COMPRESSED) else "." + whole.rpartition(".")[2]


def sent_name(number: int, file: File) -> str:
    """The name under which the file at place `number` of a request is sent."""
    if isinstance(file, tuple):
        return f"{number}{file[1]}"
    return f"{number}{'.zip' if Path(file).is_dir() else suffix_of(Path(file).name)}"


def open_all(files: Iterable[File], stack: ExitStack) -> list[Part]:
    """The parts of a multipart request; what is opened is closed with `stack`.

    Raises:
        OSError: a file cannot be read.
    """
    parts: list[Part] = []
    for number, file in enumerate(files):
        stream: IO[bytes]
        if isinstance(file, tuple):
            stream = io.BytesIO(file[0])
        elif Path(file).is_dir():
            stream = stack.enter_context(_zipped(Path(file)))
        else:
            stream = stack.enter_context(Path(file).open("rb"))
        parts.append(("files", (sent_name(number, file), stream, "application/octet-stream")))
    return parts


def _zipped(folder: Path) -> IO[bytes]:
    stream: IO[bytes] = tempfile.TemporaryFile()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as packed:
        for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            packed.write(path, f"{number:06d}{suffix_of(path.name)}")
    stream.seek(0)
    return stream
