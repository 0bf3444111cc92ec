"""Join a table of labels with an embedding table: by salted id, or by path through the installation's salt."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from data_adapters.catalog import SAMPLE, below, is_foreign, participant, prefix_of, spellings, tidy
from data_adapters.exclusion import check_exclusion
from data_adapters.identity import PLACE, group_id, place_id
from data_adapters.leaks import Leak, Placed, alike, find_leak
from data_adapters.tables import FIRST, NO_LABELS, NUMBER, OWN, PARTICIPANT, Table, count, meaning, one_style
from lejepa_med.errors import UserError
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.examples import Kind, Label

MOST_GRADES = 11  # of a scale that is written in numbers, from 0 to 10
GAP = 1000  # items of one file in a row that may be missing in a table


@dataclass(frozen=True)
class LabelRow:
    """One labelled item: by `id`, or by `path` (and `item`), or all items of a BIDS `participant`.

    `group` overrides the table's group when given. `number` is the row's in the file, where the header is row 1.
    """

    label: str
    id: str = ""
    path: str = ""
    item: str = ""
    group: str = ""
    split: str = ""
    number: int = 0
    participant: str = ""

    @property
    def name(self) -> str:
        """The row's name in messages."""
        return f"row {self.number} ({self.path or self.id or self.participant})"


@dataclass(frozen=True)
class Labels:
    """The labelled rows of a table.

    Attributes:
        rows: those with a label, of the wanted split.
        others: those with a label, of other splits.
        unlabelled: how many rows have no label.
        table: where they stand.
        placed: those without a label that have a split or a group.
    """

    rows: list[LabelRow]
    others: list[LabelRow]
    unlabelled: int
    table: Table
    placed: list[LabelRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def class_name(self, row: LabelRow) -> str:
        """Return the class of a row; 1 and 1.0 are the same class where the whole column is numbers."""
        return self.table.class_name("label", row.label)

    def number(self, row: LabelRow) -> float:
        """Return the number of a row.

        Raises:
            UserError: it is no finite number.
        """
        found = self.table.value("label", row.label)
        if isinstance(found, str):
            try:
                found = float(found.replace("_", "no number"))  # which Python would skip
            except ValueError:
                raise UserError(
                    f"The label '{row.label}' in row {row.number} of {self.table.file} is no number.",
                    remedy="Write numbers with a decimal point, or use another --kind.",
                ) from None
        if not math.isfinite(found):
            raise UserError(
                f"The label '{row.label}' in row {row.number} of {self.table.file} is not a finite number.",
                remedy="Leave the label empty where there is none.",
            )
        return found


def read_labels(
    file: Path, *, split: str | None = None, group_column: str | None = None, label_column: str | None = None
) -> Labels:
    """Read a table with the columns `label` and `id` or `path` (optionally item, group, split) by data_adapters.tables.

    A BIDS participants.tsv has `participant_id` in place of a path. The columns named are read as group and label.

    Raises:
        UserError: missing file or columns, or no labelled row.
    """
    table = Table(
        file,
        what="The table of labels",
        needs=(("label",), ("path", "id", PARTICIPANT)),
        group_column=group_column,
        label_column=label_column,
    )
    found: list[LabelRow] = []
    placed: list[LabelRow] = []
    unlabelled = 0
    for row in table:
        cells = row.cells
        unlabelled += not cells["label"]
        if cells["label"] or cells.get("split") or cells.get("group"):
            own = {name: cells.get(name, "") for name in ("label", "id", "path", "item", "group", "split")}
            if table.participants:
                own["participant"] = participant(cells[PARTICIPANT])
                if "group" not in table.called:  # a column of this name is a diagnosis in BIDS
                    own["group"] = own["participant"]
            (found if cells["label"] else placed).append(LabelRow(number=row.number, **own))
    rows = [row for row in found if split is None or row.split == split]
    labels = Labels(rows, [row for row in found if split is not None and row.split != split], unlabelled, table, placed)
    if not rows:
        where = f" in the split '{split}'" if split is not None else ""
        known = sorted({row.split for row in found} - {""})
        name = table.called.get("label", "label")
        said = "".join(f" {note}." for note in table.missing.notes(["label"]))
        raise UserError(
            f"The table of labels {file} holds no labelled row{where}.{said}",
            remedy=f"The splits with labels are: {', '.join(known)}." if known else f"Fill the column '{name}'.",
        )
    return labels


@dataclass(frozen=True)
class Joined:
    """Rows of a table that have a label, in the table's order: their places, ids, labels and groups.

    Attributes:
        unmatched: labelled rows whose path or id no embedded item has.
        numbers: of the table's row for each item, by which `further_columns` finds its other cells.
        report: what was used and what was not, as JSON without any path.
        notes: the same in sentences.
        leak: what lies in one of the used splits and in another one.
        relatives: group by id of items that the table names with a group, and that are not used.
    """

    rows: list[int]
    ids: list[str]
    labels: list[Label]
    groups: list[str]
    unmatched: list[LabelRow]
    numbers: list[int]
    report: dict[str, Any]
    notes: list[str]
    leak: Leak | None = None
    relatives: dict[str, str] = field(default_factory=dict)

    def without(self, ids: Collection[str]) -> "Joined":
        """Leave out the items with these ids; the report counts them.

        Raises:
            UserError: none of them is among the items, or all are.
        """
        left_out = set(ids)
        kept = [place for place, name in enumerate(self.ids) if name not in left_out]
        excluded = len(self.ids) - len(kept)
        check_exclusion(excluded, of=len(self.ids))
        return replace(
            self,
            rows=[self.rows[place] for place in kept],
            ids=[self.ids[place] for place in kept],
            labels=[self.labels[place] for place in kept],
            groups=[self.groups[place] for place in kept],
            numbers=[self.numbers[place] for place in kept],
            report={**self.report, "excluded": excluded, "items": len(kept)},
            notes=[*self.notes, f"{count(excluded, 'labelled item', 'is')} excluded"],
        )


def join(table: EmbeddingTable, labels: Labels, *, archive: Path, kind: Kind = "classification") -> Joined:
    """Find the label of each item; rows without an embedding are counted and named.

    Args:
        table: the embeddings.
        labels: of read_labels.
        archive: folder to which the rows' paths are relative, as in the scan; the table's own folder goes, too.
        kind: what the labels are; numbers are parsed, and several labels of one item are split at ';'.

    Raises:
        UserError: no row matches, one item has two labels, or a label is no number where numbers are wanted.
    """
    if kind == "regression":
        labels.table.check_numbers(["label"])
    finder = _Finder(table, labels, archive)
    chosen: dict[int, tuple[LabelRow, Label, str]] = {}
    found = [(row, finder.find(row)) for row in labels.rows]
    unmatched = [row for row, places in found if not places]
    single = {places[0] for row, places in found if len(places) == 1}
    for row, places in found:
        value = parse_label(row, labels, kind) if places else ""
        named = labels.table.class_name("group", row.group)
        for index in places:
            if len(places) > 1 and index in single:  # a row of an item comes before the row of its file
                continue
            group = group_id(named) if named else table.groups[index]
            first, before, _ = chosen.setdefault(index, (row, value, group))
            if before != value:
                raise UserError(
                    f"'{row.path or row.id or row.participant}' has two labels "
                    f"(rows {first.number} and {row.number} of {labels.table.file}).",
                    remedy="Keep one label for each item.",
                )
    if not chosen:
        raise UserError(
            f"Not one of the {len(labels)} labelled rows matches the {len(table.ids)} embedded items. "
            f"The first: {', '.join(row.name for row in unmatched[:FIRST])}.",
            remedy=f"Embed with --catalog {labels.table.file}, so that its participants are the groups."
            if labels.table.participants
            else "Paths must be relative to the archive's folder as it was embedded (--archive) or to the table, and "
            "ids come from this installation's salt (LEJEPA_SALT to share it).",
        )
    places = sorted(chosen)
    report = {
        "rows": len(labels.rows) + len(labels.others) + labels.unlabelled,
        "other_splits": len(labels.others),
        "missing": labels.table.missing.counts("label"),
        "unmatched": len(unmatched),
        "unmatched_rows": [row.number for row in unmatched[:FIRST]],
        "used": len(labels.rows) - len(unmatched),
        "items": len(places),
        "items_without_label": len(table.ids) - len(places),
    }
    return Joined(
        rows=places,
        ids=[table.ids[i] for i in places],
        labels=[chosen[i][1] for i in places],
        groups=[chosen[i][2] for i in places],
        unmatched=unmatched,
        numbers=[chosen[i][0].number for i in places],
        report=report,
        notes=[
            *_notes(report, unmatched, labels, kind, finder.prefix),
            *_alike(labels),
            *_likely_group(table, labels, found),
            *(_likely_quantity({label for _, label, _ in chosen.values()}) if kind == "classification" else []),
        ],
        leak=_leak(table, labels, finder, {i: group for i, (_, _, group) in chosen.items()}),
        relatives={
            table.ids[index]: group_id(named)
            for row in (*labels.others, *labels.placed)
            if (named := labels.table.class_name("group", row.group))
            for index in finder.find(row)
            if index not in chosen
        },
    )


def further_columns(labels: Labels, numbers: Sequence[int]) -> dict[str, list[str | float | None]]:
    """Return the table's other columns (site, scanner ...), a value for each of the rows with these numbers.

    A column is left out where it has no value, or another text in every row, as names and notes have.
    """
    table = labels.table
    wanted = [name for name in table.names if name and name not in (*OWN, PARTICIPANT, *table.called.values())]
    cells = {row.number: row.cells for row in table} if wanted else {}
    found: dict[str, list[str | float | None]] = {}
    for name in wanted:
        values: list[str | float | None] = [
            table.value(name, text) if (text := cells[number][name]) else None for number in numbers
        ]
        known = [value for value in values if value is not None]
        if known and not (len(set(known)) == len(known) and any(isinstance(value, str) for value in known)):
            found[name] = values
    return found


def _likely_group(table: EmbeddingTable, labels: Labels, found: Sequence[tuple[LabelRow, list[int]]]) -> list[str]:
    """Name a column that looks like patients, say, and is not used for groups; and whether that matters."""
    column = labels.table.likely_group
    if column is None:
        return []
    values = {row.number: row.cells[column] for row in labels.table}
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for row, places in found:
        if values[row.number]:
            groups[values[row.number]].update(table.groups[place] for place in places)
    several = sum(len(held) > 1 for held in groups.values())
    if several:
        return [
            f"the column '{column}' looks like the group (patient, slide, field), and is not used: images of one "
            f"{column} lie in several groups ({several:,} of {count(len(groups), 'value')}), so scores may be too "
            f"high; give --group-column {quote(column)}"
        ]
    return [f"the column '{column}' is not used as the group: each of its values lies in one group of the table anyway"]


def _likely_quantity(classes: Collection[Label]) -> list[str]:
    """Name labels that are no classes, such as ages: more different numbers than a scale has."""
    if len(classes) <= MOST_GRADES or not all(isinstance(name, str) and NUMBER.fullmatch(name) for name in classes):
        return []
    return [
        f"the labels are {len(classes):,} different numbers, each of which is taken as a class; if they are "
        "quantities, give --kind regression"
    ]


def _alike(labels: Labels) -> list[str]:
    names = alike(row.split for row in (*labels.rows, *labels.others, *labels.placed))
    return [f"the splits {', '.join(map(repr, one))} are taken as different ones, as they are written" for one in names]


def _leak(table: EmbeddingTable, labels: Labels, finder: "_Finder", chosen: dict[int, str]) -> Leak | None:
    """Groups and equal images in several splits: of the labels' table, or where that has none, of the catalogue."""
    rows = [*labels.rows, *labels.others, *labels.placed]
    if not any(row.split for row in rows):
        return table.leak(chosen)
    used, placed = {row.number for row in labels.rows}, []
    found = [(row, finder.find(row)) for row in rows]
    single = {places[0] for _, places in found if len(places) == 1}
    for row, places in found:
        named = labels.table.class_name("group", row.group)
        if named and not places:
            placed.append(Placed(group_id(named), "", row.split, row.name, row.number in used))
        for index in places:
            if len(places) == 1 or index not in single:
                group = group_id(named) if named else table.groups[index]
                content, _ = table.related.get(table.ids[index], ("", ""))
                placed.append(Placed(group, content, row.split, row.name, row.number in used))
    return find_leak(placed)


def _notes(
    report: dict[str, Any], unmatched: Sequence[LabelRow], labels: Labels, kind: Kind, prefix: str | None
) -> list[str]:
    found = [f"{report['used']:,} of {count(report['rows'], 'row')} used, for {count(report['items'], 'item')}"]
    if report["other_splits"]:
        found.append(f"{count(report['other_splits'], 'labelled row', 'is')} of other splits")
    found += labels.table.missing.notes()
    if kind == "multilabel" and "-" in report["missing"]:
        found.append(f"an image in which none of the labels can be seen is written {NO_LABELS}, not -")
    if unmatched:
        # By number, not by path: what a command prints may be shared, and the table is at hand.
        some = ", ".join(f"row {row.number}" for row in unmatched[:FIRST]) + f" of {labels.table.file.name}"
        found.append(f"{count(len(unmatched), 'labelled row', 'matches')} no embedded item. The first: {some}")
    if prefix is not None:
        found.append("the folder in which Windows paths of the table begin is taken as the archive's")
    if report["items_without_label"]:
        found.append(f"{count(report['items_without_label'], 'embedded item', 'has')} no label")
    return found


class _Finder:
    """Rows of an embedding table by id or path."""

    def __init__(self, table: EmbeddingTable, labels: Labels, archive: Path) -> None:
        self._position = {name: index for index, name in enumerate(table.ids)}
        self._places = {name[:PLACE]: index for index, name in enumerate(table.ids)}
        self._of_group: defaultdict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(table.groups):
            self._of_group[group].append(index)
        self._archive = Path(os.path.abspath(archive))
        self._folder = Path(os.path.abspath(labels.table.file)).parent
        self.prefix: str | None = None
        foreign = [row for row in labels.rows if not row.id and is_foreign(row.path)][:SAMPLE]
        if foreign:
            items = {tidy(row.path): row.item for row in foreign}
            self.prefix = prefix_of(items, lambda rest: any(self._at(rest, item) for item in {*items.values(), ""}))

    def find(self, row: LabelRow) -> list[int]:
        """Return the place of a row's item, or none; a row without an item means every item of its file.

        A participant's items are those of the group that scans make of a BIDS subject.

        Raises:
            UserError: the path fits two items that differ in their spelling only.
        """
        if row.id:
            return [self._position[row.id]] if row.id in self._position else []
        if row.participant:
            return self._of_group.get(group_id(row.participant), [])
        if is_foreign(row.path):
            path = tidy(row.path)
            inside = self.prefix is not None and path.startswith(self.prefix + "/")
            names = [path[len(self.prefix or "") + 1 :]] if inside else []
        else:
            names = below(row.path, root=self._archive, folder=self._folder)
        for name in names:
            found = self._at(name, row.item)
            if found:
                exact = self._places.get(place_id(name, row.item))
                if len(found) > 1 and exact is None:
                    raise UserError(
                        f"The path in {row.name} fits {len(found)} embedded items whose names differ only in Unicode "
                        "form (NFC, NFD) or in the case of the suffix.",
                        remedy="Name them by 'id', or rename the files and embed them again.",
                    )
                return [found[0] if exact is None else exact]
            every = [] if row.item else self._items(name)
            if every:
                return every
        return []

    def _items(self, name: str) -> list[int]:
        """The items of a file that holds several, numbered from 0; some may not have been embedded."""
        for one in spellings(name):
            places: list[int] = []
            item = last = 0
            while item - last < (GAP if places else FIRST):
                place = self._places.get(place_id(one, str(item)))
                item += 1
                if place is not None:
                    places.append(place)
                    last = item
            if places:
                return places
        return []

    def _at(self, name: str, item: str) -> list[int]:
        if not name:
            return []
        places = (self._places.get(place_id(one, item)) for one in spellings(name))
        return [place for place in places if place is not None]


def parse_label(row: LabelRow, labels: Labels, kind: Kind) -> Label:
    """Return the label of a row as a probe of this kind learns it.

    Raises:
        UserError: it is no number where numbers are wanted, or a missing word stands among several labels.
    """
    if kind == "regression":
        return labels.number(row)
    if kind == "classification":
        return labels.class_name(row)
    if row.label == NO_LABELS:
        return ()
    names = [meaning(part) if part.strip() else "" for part in row.label.split(";")]
    if None in names:
        raise UserError(
            f"The labels '{row.label}' in row {row.number} of {labels.table.file} hold a word for a missing value.",
            remedy=f"Leave the whole cell empty where nobody looked, and write {NO_LABELS} where no label can be seen.",
        )
    return tuple(dict.fromkeys(name for name in names if name))


def clean_labels(labels: Sequence[Any]) -> tuple[list[int], list[Any], Counter[str]]:
    """Read labels that were given one by one (JSON, Python) by the rules of tables.

    Returns:
        The places of those that are not missing, these labels, and how often each missing word came ("" for None).

    Raises:
        UserError: a word for a missing value stands among several labels of one image.
    """
    places, kept, missing = [], [], Counter[str]()
    for place, label in enumerate(labels):
        found = label
        if isinstance(label, str):
            found = meaning(label)
        elif isinstance(label, list | tuple):
            found = [meaning(name) for name in label]
            if None in found:
                raise UserError(
                    f"The labels at position {place} hold a word for a missing value.",
                    remedy="Give null where nobody looked, and an empty list where no label can be seen.",
                )
        if found is None:
            missing[label or ""] += 1
        else:
            places.append(place)
            kept.append(found)
    if kept and all(isinstance(label, str) for label in kept):
        kept = one_style(kept)
    return places, kept, missing
