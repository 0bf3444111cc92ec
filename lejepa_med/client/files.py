"""Files as they are sent: opened anew for each try, and never under their own names, which may be those of patients."""

import io
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from lejepa_med.client.wire.common import FileKey, Skipped

File: TypeAlias = str | Path | tuple[bytes, str]
"""A path; a folder, which is sent as a zip (a DICOM series); or bytes with their suffix, such as '.nii.gz'."""

Keys: TypeAlias = Sequence[FileKey | Mapping[str, FileKey] | None]
"""For each file a key or None; for a folder or zip also keys by the names of the files in it."""

Part: TypeAlias = tuple[str, tuple[str, IO[bytes], str]]
T = TypeVar("T", bound=Any)  # an answer's item, with `file_index` and `name`
SUFFIX = re.compile(r"(\.(nii|fits|fit|fts|dcm))?\.(?=[0-9]*[a-z])[a-z0-9]{1,8}$", re.IGNORECASE)
LISTED = re.compile(r"\. (Files|The first files) \(by position, from 0\): ")  # before a caution's list of files
SENT = re.compile(
    r"""(\d+)(?: key ('[^']*'|"[^"]*"|\d+)| ['"]([^'"]*)['"])?"""
)  # one of them: position, key, name in a zip
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


def names_in(file: File) -> dict[str, str]:
    """The files of a folder by the names under which they are sent: paths below it. Empty for what is no folder."""
    if isinstance(file, tuple) or not Path(file).is_dir():
        return {}
    return {sent: path.relative_to(file).as_posix() for sent, path in _numbered(Path(file))}


def sent_keys(files: Sequence[File], keys: Keys | None) -> list[Any] | None:
    """The form field `keys`, in which a folder's files have the names under which they are sent.

    Raises:
        ValueError: not one for each file.
    """
    if keys is None:
        return None
    if len(keys) != len(files):
        raise ValueError(f"{len(files)} files and {len(keys)} keys; give one for each file, or None")
    found: list[Any] = []
    for file, key in zip(files, keys, strict=True):
        sent = {path: name for name, path in names_in(file).items()}
        found.append({sent.get(name, name): one for name, one in key.items()} if isinstance(key, Mapping) else key)
    return found


def with_names(items: Iterable[T], files: Sequence[File]) -> Iterator[T]:
    """Items of an answer; those of a sent folder get the paths below it back as `name`."""
    known: dict[int, dict[str, str]] = {}
    for item in items:
        index, name = item.file_index, item.name
        if index is not None and name is not None and index < len(files):
            if index not in known:
                known[index] = names_in(files[index])
            item = item.model_copy(update={"name": known[index].get(name, name)})
        yield item


def skipped_names(skipped: Sequence[Skipped], files: Sequence[File]) -> list[Skipped]:
    """What was skipped in an answer, in a sent folder by the paths below it."""
    known = {index: names_in(files[index]) for index in {one.file_index for one in skipped}}
    return [one.model_copy(update={"name": known[one.file_index].get(one.name, one.name)}) for one in skipped]


class CautionWarning(UserWarning):
    """What to know before using vectors or predictions, as the service says it; see docs/service.md, "Cautions"."""


def warned(
    cautions: Sequence[str], files: Sequence[File] = (), *, said: set[str] | None = None, level: int = 3
) -> list[str]:
    """Warn of the cautions of an answer, and give them with the caller's names of `files` in place of the sent ones.

    `said` are kinds of caution that were warned of before, by their texts without counts and files; it gets the new.
    The warning is at the caller's line, `level` calls up.
    """
    texts = [_with_own_names(caution, files) for caution in cautions]
    for caution, text in zip(cautions, texts, strict=True):
        kind = re.sub(r"\d[\d,]*", "", LISTED.split(caution)[0])
        if said is None or kind not in said:
            warnings.warn(f"{text}.", CautionWarning, stacklevel=level)
        if said is not None:
            said.add(kind)
    return texts


def _with_own_names(caution: str, files: Sequence[File]) -> str:
    found = LISTED.search(caution)
    if found is None or not files:
        return caution

    def own(entry: re.Match[str]) -> str:
        place, key, name = int(entry[1]), entry[2], entry[3]
        file = files[place]
        if key is not None or isinstance(file, tuple):
            return f"file {place}" if key is None else f"key {key}"
        if name is None:
            return f"'{file}'"
        inside = names_in(file).get(name)
        return f"'{name}' in '{file}'" if inside is None else f"'{Path(file) / inside}'"

    return f"{caution[: found.start()]}. {found[1]}: {SENT.sub(own, caution[found.end() :])}"


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
        for name, path in _numbered(folder):
            packed.write(path, name)
    stream.seek(0)
    return stream


def _numbered(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below a folder, with the names under which they are sent; hidden ones are no images."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    shown = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    for number, path in enumerate(shown):
        yield f"{number:06d}{suffix_of(path.name)}", path
