"""The table of file formats that a modality reads, found by the ending of a file's name.

Each modality has a `formats.py` with its table, `FORMATS`, and says there what a reader must give. A new format is its
reader and one entry. A modality derived from a built-in one takes `Base.formats.adding(...)` as its own table, so that
what it adds holds for itself alone.
"""

from pathlib import Path
from typing import Generic, Protocol, TypeVar

from data_adapters.errors import BadFileError


class FileFormat(Protocol):
    """What every entry has: `suffixes`, which begin with a dot and belong to no other entry, in lower case."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names, such as .nii and .nii.gz."""


F = TypeVar("F", bound=FileFormat)


class FormatTable(Generic[F]):
    """The formats of one modality, in the order in which users read of them."""

    def __init__(self, *formats: F) -> None:
        """Take these formats.

        Raises:
            ValueError: two of them have a suffix in common, or one does not begin with a dot in lower case.
        """
        self.formats = formats
        self.suffixes = tuple(suffix for one in formats for suffix in one.suffixes)
        if wrong := [suffix for suffix in self.suffixes if not suffix.startswith(".") or suffix != suffix.lower()]:
            raise ValueError(f"suffixes begin with a dot and are in lower case, not {', '.join(wrong)}")
        self._by_suffix = {suffix: one for one in formats for suffix in one.suffixes}
        if len(self._by_suffix) < len(self.suffixes):
            twice = sorted({suffix for suffix in self.suffixes if self.suffixes.count(suffix) > 1})
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
        place = name.find(".")
        while place >= 0:  # from the first dot on, so that .nii.gz comes before .gz
            if (found := self._by_suffix.get(name[place:])) is not None:
                return found
            place = name.find(".", place + 1)
        raise BadFileError(
            "not a format that this modality reads", remedy=f"Save it as {', '.join(self.suffixes)}.", path=path
        )
