"""A split as files: a catalogue that every command accepts, checked as it lies on the disk, and its receipt."""

import csv
import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_adapters.atomic import new_file, write_text
from data_adapters.manifest import Manifest
from data_adapters.tables import INVISIBLE, Table, count, escaped
from lejepa_med.data.split import assign, check_fractions
from lejepa_med.errors import UserError

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
