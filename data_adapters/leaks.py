"""Whether splits keep apart what belongs together: groups (patients, slides, sky cells) and exactly equal images.

The one rule for a catalogue, a manifest, a table of labels and an embedding table. Names of splits are taken as they
are written: `Train` and `train` are two splits. An item without a split is on no side.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from data_adapters.errors import UserError
from data_adapters.tables import count

FIRST = 3  # leaks that are shown
NO_GROUPS = "; where folders were taken for groups and are classes or sites, set the option group_by"


class Placed(NamedTuple):
    """One item and where it lies.

    Attributes:
        group: what must stay in one split.
        content: equal for exactly equal images; empty where it is not known.
        split: as written, or empty.
        name: what the user calls the item.
        used: whether it is among what is about to be used; a leak between others does no harm.
    """

    group: str
    content: str
    split: str
    name: str
    used: bool = True


@dataclass(frozen=True)
class Leak:
    """What lies in several splits.

    Attributes:
        groups: groups in several splits.
        images: items of these groups.
        copies: image contents that lie in several splits under several groups.
        first: the first of these groups, and groups with such an image.
        examples: an item in each of two splits, for each of the first leaks.
    """

    groups: int
    images: int
    copies: int
    first: tuple[str, ...]
    examples: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        if self.groups:
            parts.append(f"{count(self.groups, 'group', 'lies')} in several splits ({count(self.images, 'image')})")
        if self.copies:
            parts.append(
                f"{count(self.copies, 'image', 'lies')} in different splits as exact copies under other groups"
            )
        return " and ".join(parts)

    def report(self) -> dict[str, int]:
        """The counts, as JSON."""
        return {"groups": self.groups, "images": self.images, "copies": self.copies}

    def check(self, *, allow: bool, flag: str) -> None:
        """Refuse to go on with what leaks.

        Args:
            allow: the user wants it all the same.
            flag: how the user says so.

        Raises:
            UserError: not `allow`.
        """
        if not allow:
            raise UserError(
                f"LEAK: {self}. For example: {'; '.join(self.examples)}. Scores on such a split are too high.",
                remedy="Make a clean split with: lejepa-med split MANIFEST --out splits.csv. Or correct the columns "
                f"'group' and 'split' of the table{NO_GROUPS}. {flag} goes on with the leak.",
            )


class _Spread:
    """Where the items of one group, or of one content, lie; of few splits, however many items there are."""

    __slots__ = ("first", "groups", "items", "used")

    def __init__(self) -> None:
        self.items = 0
        self.first: dict[str, str] = {}  # split -> name of its first item
        self.groups: list[str] = []
        self.used: tuple[str, str] | None = None  # name and split of the first item that is used

    def add(self, item: Placed) -> None:
        self.items += 1
        self.first.setdefault(item.split, item.name)
        if item.group not in self.groups:
            self.groups.append(item.group)
        if item.used and self.used is None:
            self.used = (item.name, item.split)

    @property
    def leaks(self) -> bool:
        return len(self.first) > 1 and self.used is not None

    def example(self) -> str:
        """The first item that is used, and one of another split."""
        assert self.used is not None
        name, split = self.used
        other = next(one for one in self.first if one != split)
        return f"{name} ({split}) and {self.first[other]} ({other})"


def find_leak(items: Iterable[Placed]) -> Leak | None:
    """The groups and the equal images that lie in several splits, at least one of them with an item that is used."""
    groups: dict[str, _Spread] = defaultdict(_Spread)
    contents: dict[str, _Spread] = defaultdict(_Spread)
    for item in items:
        if item.split:
            groups[item.group].add(item)
            if item.content:
                contents[item.content].add(item)
    leaking = [one for one in groups.values() if one.leaks]
    copies = [one for one in contents.values() if one.leaks and len(one.groups) > 1]
    if not leaking and not copies:
        return None
    both = (*leaking, *copies)
    return Leak(
        groups=len(leaking),
        images=sum(one.items for one in leaking),
        copies=len(copies),
        first=tuple(dict.fromkeys(group for one in both[:FIRST] for group in one.groups))[:FIRST],
        examples=tuple(one.example() for one in both[:FIRST]),
    )


def alike(splits: Iterable[str]) -> list[list[str]]:
    """Names of splits that differ in case or spaces only."""
    known: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(splits) - {""}):
        known["".join(name.casefold().split())].append(name)
    return [names for names in known.values() if len(names) > 1]
