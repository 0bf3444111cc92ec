"""The table of file formats that a modality reads, found by the ending of a file's name.

Each modality has a `formats.py` with its table, `FORMATS`, and says there what a reader must give. A new format is its
reader and one entry. A modality derived from a built-in one takes `Base.formats.adding(...)` as its own table, so that
what it adds holds for itself alone.
"""

from collections import Counter
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from data_adapters.errors import BadFileError


class FileFormat(Protocol):
    """What every entry has: `suffixes`, in lower case, that no other entry of the table has."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names, such as .nii and .nii.gz."""


F = TypeVar("F", bound=FileFormat)


class FormatTable(Generic[F]):
    """The formats of one modality, in the order in which users read of them."""

    def __init__(self, *formats: F) -> None:
        """Take these formats.

        Raises:
            ValueError: two of them have a suffix in common.
        """
        self.formats = formats
        self.suffixes = tuple(suffix for one in formats for suffix in one.suffixes)
        twice = [suffix for suffix, times in Counter(self.suffixes).items() if times > 1]
        if twice:
            raise ValueError(f"two formats for {', '.join(twice)}")

    def adding(self, *formats: F) -> "FormatTable[F]":
        """Return a table with further formats.

        Raises:
            ValueError: a suffix is taken.
        """
        return FormatTable(*self.formats, *formats)

    def of(self, path: Path) -> F:
        """Return the format of a file; the longest suffix decides, upper and lower case alike.

        Raises:
            BadFileError: there is none.
        """
        name = path.name.lower()
        fitting = [(len(suffix), one) for one in self.formats for suffix in one.suffixes if name.endswith(suffix)]
        if not fitting:
            raise BadFileError(
                "not a format that this modality reads", remedy=f"Save it as {', '.join(self.suffixes)}.", path=path
            )
        return max(fitting, key=lambda pair: pair[0])[1]
