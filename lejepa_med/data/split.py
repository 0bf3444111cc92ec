"""Train, validation and test by group: no patient, slide or sky cell on two sides, and the same mix of labels on each.

Groups that share an exactly equal image are taken as one. Then, as in multi-label iterative stratification
(Sechidis, Tsoumakas and Vlahavas 2011): the largest unit first, each goes where it lowers most the chi-squared distance
sum over splits and labels of (count - wanted)^2 / wanted. Before that, each label gets one small unit in every split.

A split is written as a catalogue that every command accepts, checked as it lies on the disk, with its receipt.
"""

import csv
import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from data_adapters.atomic import new_file, write_text
from data_adapters.leaks import NO_GROUPS
from data_adapters.manifest import Manifest
from data_adapters.tables import INVISIBLE, Table, count, escaped
from lejepa_med.errors import UserError

UNLABELLED = ""


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Two splits or more that sum to 1.

    Raises:
        UserError: they do not.
    """
    if len(fractions) < 2 or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        given = " ".join(f"{name}={value:g}" for name, value in fractions.items()) or "nothing"
        raise UserError(
            f"The fractions must be two or more, above 0, and sum to 1; they are: {given}.",
            remedy="For example: --fractions train=.7 val=.15 test=.15",
        )


def assign(
    groups: Sequence[str],
    labels: Sequence[str | None],
    contents: Sequence[str],
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> tuple[list[str], int]:
    """The split of each item, and the number of units: groups, after those with equal content became one.

    Args:
        groups: what must stay on one side, (N).
        labels: class names; None or empty where unlabelled, which is balanced like a class, (N).
        contents: equal where two items are exactly equal, (N).
        fractions: split name -> wanted part of the items.
        seed: of the order among units of equal size.

    Raises:
        UserError: too few groups, or a class in fewer groups than there are splits.
    """
    check_fractions(fractions)
    unit, count = _units(groups, contents)
    names, code = np.unique([label or UNLABELLED for label in labels], return_inverse=True)
    counts = csr_array(coo_array((np.ones(len(unit), np.int64), (unit, code)), shape=(count, len(names))))
    if count < len(fractions):
        raise UserError(
            f"The archive has {count} separate groups, fewer than the {len(fractions)} splits.",
            remedy=f"Give a catalogue with finer groups, or fewer --fractions{NO_GROUPS}.",
        )
    chosen = _Assignment(counts, names, fractions, np.random.default_rng(seed))
    chosen.cover()
    chosen.fill()
    return [chosen.splits[side] for side in chosen.side[unit]], count


def _units(groups: Sequence[str], contents: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """For each item its unit: the connected part of the graph in which items join groups and contents."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    _, content = np.unique(np.asarray(contents), return_inverse=True)
    nodes = int(group.max()) + 1
    size = nodes + int(content.max()) + 1
    graph = coo_array((np.ones(len(group), np.int8), (group, content + nodes)), shape=(size, size))
    _, part = connected_components(graph, directed=False)
    _, unit = np.unique(part[group], return_inverse=True)
    return unit.astype(np.int64), int(unit.max()) + 1


class _Assignment:
    """Which unit lies on which side, while it is being decided."""

    def __init__(
        self, counts: csr_array, names: NDArray[np.str_], fractions: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        self.counts, self.names, self.splits = counts, names, list(fractions)
        self.parts = np.array(list(fractions.values()))
        self.side = np.full(counts.shape[0], -1)
        self.wanted = np.outer(self.parts, counts.sum(axis=0))  # (splits, classes), items
        self.given = np.zeros_like(self.wanted)
        sizes = counts.sum(axis=1)
        self.order = np.lexsort((rng.permutation(len(sizes)), -sizes))  # the largest first

    def put(self, unit: int, side: int) -> None:
        """Decide one unit."""
        self.side[unit] = side
        classes, items = self._of(unit)
        self.given[side, classes] += items

    def _of(self, unit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        inside = slice(self.counts.indptr[unit], self.counts.indptr[unit + 1])
        return self.counts.indices[inside], self.counts.data[inside]

    def cover(self) -> None:
        """Give every class a unit in every split, the rarest class and the smallest units first."""
        smallest = self.order[::-1]
        by_class = self.counts[smallest].tocsc()  # the indices of a column ascend: from the smallest unit on
        needed = [c for c, name in enumerate(self.names) if name != UNLABELLED] or list(range(len(self.names)))
        holders = {c: smallest[by_class.indices[by_class.indptr[c] : by_class.indptr[c + 1]]] for c in needed}
        for c in sorted(needed, key=lambda c: len(holders[c])):
            if len(holders[c]) < len(self.splits):
                raise self._too_rare(c, len(holders[c]))
            free = (unit for unit in holders[c] if self.side[unit] < 0)
            for side in np.argsort(self.parts, kind="stable"):
                if self.given[side, c] == 0:
                    unit = next(free, None)
                    if unit is None:
                        raise self._too_rare(c, len(holders[c]))
                    self.put(int(unit), int(side))

    def _too_rare(self, c: int, units: int) -> UserError:
        what = f"The label '{self.names[c]}'" if self.names[c] != UNLABELLED else "The archive"
        return UserError(
            f"{what} lies in {units} separate groups, too few for each of the {len(self.splits)} splits to get one.",
            remedy="Take fewer --fractions, join rare labels into one, or leave that label empty in the catalogue"
            f"{NO_GROUPS}.",
        )

    def fill(self) -> None:
        """Put each further unit where it lowers the chi-squared distance most."""
        for unit in self.order:
            if self.side[unit] >= 0:
                continue
            classes, items = self._of(int(unit))
            wanted = self.wanted[:, classes]
            change = (items * (2 * (self.given[:, classes] - wanted) + items) / wanted).sum(axis=1)
            self.put(int(unit), int(change.argmin()))


DISJOINT = "no group and no equal image lies in two splits"
HEADER = ("path", "item", "group", "label", "split")


def receipt_file(out: Path) -> Path:
    """Where the receipt of a split lies: beside it."""
    return out.with_suffix(".receipt.txt")


def check_target(out: Path, fractions: Mapping[str, float], *, overwrite: bool) -> None:
    """Refuse before the work begins what would be refused after it.

    Raises:
        UserError: unusable fractions, or a file that is there already.
    """
    check_fractions(fractions)
    if out.suffix.lower() != ".csv":
        raise UserError(f"--out {out} is not a CSV file.", remedy="Give a name that ends in .csv.")
    there = [file for file in (out, receipt_file(out)) if file.exists()]
    if there and not overwrite:
        raise UserError(
            f"{there[0]} is there already, and results may depend on it.",
            remedy="Give another --out, or --overwrite to make a new split under this name.",
        )


def write_split(
    manifest: Manifest, out: Path, *, fractions: Mapping[str, float], seed: int, overwrite: bool = False
) -> dict[str, Any]:
    """Split `manifest` by group; write the catalogue `out` and its receipt, which is also returned.

    The catalogue has the columns path, item, group (sealed: a salted hash, which a scan takes as the group), label and
    split. It is read back and checked before it gets its name.

    Raises:
        UserError: see `check_target` and `assign`; or the manifest is empty.
    """
    check_target(out, fractions, overwrite=overwrite)
    if not len(manifest):
        raise UserError(
            f"The manifest of {manifest.root} has no rows to split.",
            remedy="Repair the files that rejected.csv beside it lists, and repeat: lejepa-med scan",
        )
    paths, items = manifest.column("path"), manifest.column("item")
    groups, labels = manifest.column("group"), manifest.column("label")
    contents = [f"{digest}/{item}" for digest, item in zip(manifest.column("digest"), items, strict=True)]
    leak = manifest.leak()
    splits, units = assign(groups, labels, contents, fractions=fractions, seed=seed)

    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as draft:
        with draft.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(HEADER)
            for row in zip(paths, items, groups, labels, splits, strict=True):
                path, item, group, label, split = row
                writer.writerow([path, item, f"hash:{group}", escaped(label or ""), split])
        content = dict(zip(zip((path.strip(INVISIBLE) for path in paths), items, strict=True), contents, strict=True))
        found = _check(draft, content)
        receipt = {
            "items": len(manifest),
            "groups": len(set(groups)),
            "by_folder": manifest.by_folder,
            "groups_joined_by_equal_images": len(set(groups)) - units,
            "repaired": None if leak is None else leak.report(),
            "splits": {
                name: {"wanted": part, "fraction": found[name]["items"] / len(manifest), **found[name]}
                for name, part in fractions.items()
            },
            "seed": seed,
            "manifest": manifest.digest(),
            "csv_blake2b": hashlib.blake2b(draft.read_bytes(), digest_size=16).hexdigest(),
            "tool": f"lejepa-med {_version()}",
        }
        for old in (receipt_file(out), out.with_suffix(".receipt.json")):  # .json: of earlier releases
            old.unlink(missing_ok=True)  # never an old receipt beside a new split
    write_text(receipt_file(out), _receipt_text(out, receipt))
    return receipt


def _receipt_text(out: Path, receipt: Mapping[str, Any]) -> str:
    """The receipt as a person reads it, one statement a line."""
    lines = [
        f"Split {out.name}, made by {receipt['tool']} with seed {receipt['seed']}",
        "",
        f"{count(receipt['items'], 'item')} in {count(receipt['groups'], 'group')}",
    ]
    if receipt["by_folder"]:
        lines.append(f"{receipt['by_folder']}.")
    for name, part in receipt["splits"].items():
        labels = ", ".join(f"{label} {times:,}" for label, times in part["labels"].items())
        share = f"{part['fraction']:.1%}, wanted {part['wanted']:.1%}"
        items, groups = count(part["items"], "item"), count(part["groups"], "group")
        lines.append(f"{name}: {items} in {groups} ({share}); labels: {labels}")
    if receipt["groups_joined_by_equal_images"]:
        lines.append(f"groups kept together because of equal images: {receipt['groups_joined_by_equal_images']:,}")
    if receipt["repaired"] is not None:
        lines.append(f"repaired: {repaired_text(receipt['repaired'])}")
    lines += [
        "",
        f"Checked in the written file: {DISJOINT}.",
        f"digest of the manifest: {receipt['manifest']}",
        f"BLAKE2b of {out.name}: {receipt['csv_blake2b']}",
    ]
    return "\n".join(lines) + "\n"


def repaired_text(repaired: Mapping[str, int]) -> str:
    """What of the manifest's own split was a leak."""
    groups = f"{repaired['groups']:,} groups ({repaired['images']:,} images)"
    return (
        f"in the manifest's own split, {groups} and {repaired['copies']:,} equal images lay in several splits; "
        "each now lies in one"
    )


def _check(file: Path, content: Mapping[tuple[str, str], str]) -> dict[str, dict[str, Any]]:
    """Counts by split of a written catalogue, after the proof that it is whole and disjoint."""
    side: dict[str, str] = {}
    labels: dict[str, Counter[str]] = {}
    groups: dict[str, set[str]] = {}
    seen = 0
    for row in Table(file):
        seen += 1
        cells, split = row.cells, row.cells["split"]
        for key in (f"group {cells['group']}", f"content {content[cells['path'], cells['item']]}"):
            if side.setdefault(key, split) != split:
                raise AssertionError(f"a {key.split()[0]} lies in the splits '{side[key]}' and '{split}'")
        groups.setdefault(split, set()).add(cells["group"])
        labels.setdefault(split, Counter())[cells["label"] or "(none)"] += 1
    if seen != len(content):
        raise AssertionError(f"{seen} rows were written of {len(content)}")
    return {
        name: {"items": counts.total(), "groups": len(groups[name]), "labels": dict(sorted(counts.items()))}
        for name, counts in labels.items()
    }


def _version() -> str:
    try:
        return importlib.metadata.version("lejepa-med")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
