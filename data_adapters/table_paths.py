r"""Which file a table's path means: separators, Unicode forms, Windows drives, and folders to which it is relative."""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

FOREIGN = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\/]")  # a drive, or a Windows share
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_|$)")
PACKED = ("gz", "bz2", "xz", "fz", "zst")
SPELLINGS = 64  # at most as many ways to write one path are tried
SAMPLE = 256  # rows by which the folder of foreign paths is found


def is_foreign(path: str) -> bool:
    """Whether a path names a Windows drive or share, on a machine that has none."""
    return os.sep == "/" and bool(FOREIGN.match(path))


def tidy(path: str) -> str:
    r"""A path with '/' between its parts, without '.', and with '..' only at its start."""
    head = "//" if path.startswith("\\\\") else "/" if path[:1] in ("/", "\\") else ""
    parts: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        if part == ".." and (head or parts) and parts[-1:] != [".."]:
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return head + "/".join(parts)


def participant(name: str) -> str:
    """A participant as BIDS names the folder: sub-01 for 01 and for sub-01; empty for an empty name."""
    return name if not name or name.startswith("sub-") else f"sub-{name}"


def subjects(path: str) -> list[str]:
    """The BIDS subjects that a path names, the folders from the root on, then the file: sub-01 in sub-01/anat/x.nii."""
    return [found[1] for found in map(SUBJECT.match, path.split("/")) if found]


def fold(path: str) -> str:
    """A tidy path as it is compared when nothing fits exactly: in NFC, the suffix in lower case."""
    stem, suffix = _suffix(unicodedata.normalize("NFC", path))
    return stem + suffix.lower()


def spellings(path: str) -> Iterator[str]:
    """A tidy path and all the others, as far as they are usual, that `fold` to the same."""
    stem, suffix = _suffix(path)
    parts = [_forms(part) for part in stem.split("/")]
    if _count(parts) > SPELLINGS:
        parts = [[stem], *([[unicodedata.normalize(form, stem)] for form in ("NFC", "NFD")])]
        stems = list(dict.fromkeys(one for (one,) in parts))
    else:
        stems = ["/".join(chosen) for chosen in itertools.product(*parts)]
    seen = {}
    for ending in (suffix, suffix.lower(), suffix.upper()):
        for one in stems:
            seen[one + ending] = True
    yield from seen


def _forms(part: str) -> list[str]:
    return list(dict.fromkeys([part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]))


def _count(parts: Iterable[list[str]]) -> int:
    total = 1
    for forms in parts:
        total *= len(forms)
    return total


def _suffix(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    if not stem:
        return path, ""
    if ending.lower() in PACKED and "." in stem.strip("."):
        stem, dot, inner = stem.rpartition(".")
        ending = f"{inner}.{ending}"
    return folder + slash + stem, dot + ending


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def real(path: str) -> str:
    """An absolute tidy path whose folder is named without links."""
    folder, _, name = path.rpartition("/")
    return f"{tidy(_real(folder))}/{name}" if folder else path


def prefix_of(paths: Iterable[str], has: Callable[[str], bool]) -> str | None:
    """The folder that foreign tidy paths have in place of the archive's, by what of them lies in the archive.

    Args:
        paths: some of them.
        has: whether a path below the archive is there.
    """
    found: Counter[str] = Counter()
    for path in paths:
        parts = path.split("/")
        for place in range(1, len(parts)):
            rest = "/".join(parts[place:])
            if rest and parts[place] and has(rest):
                found["/".join(parts[:place])] += 1
                break
    return found.most_common(1)[0][0] if found else None


def on_disk(root: Path) -> Callable[[str], bool]:
    """Whether a path below `root` is there, in one of its spellings."""
    return lambda rest: any((root / one).exists() for one in spellings(rest))


def below(path: str, *, root: Path, folder: Path) -> list[str]:
    """Tidy paths below `root` that a table's path can mean, the likely one first.

    Args:
        path: as it stands in the table, not foreign.
        root: the archive's folder.
        folder: the table's folder.
    """
    given = tidy(path)
    roots = list(dict.fromkeys(tidy(str(one)) for one in (Path(os.path.abspath(root)), root.resolve())))
    absolute = os.path.isabs(given) or bool(FOREIGN.match(given))
    whole = given if absolute else tidy(f"{os.path.abspath(folder)}/{given}")
    found = []
    for one, base in itertools.product(dict.fromkeys((whole, real(whole))), roots):
        if one.startswith(base.rstrip("/") + "/"):
            found.append(one[len(base.rstrip("/")) + 1 :])
    if not absolute and not given.startswith("../"):
        found.append(given)
        name = roots[-1].rpartition("/")[2]
        if name and given.startswith(name + "/"):
            found.append(given[len(name) + 1 :])
    return list(dict.fromkeys(found))
