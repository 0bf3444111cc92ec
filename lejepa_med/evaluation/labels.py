"""labels.csv meets an embedding table: by salted id, or by path through the installation's salt."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_adapters.identity import group_id, pseudonym
from lejepa_med.atomic import write_text
from lejepa_med.embed import EmbeddingTable
from lejepa_med.errors import UserError
from lejepa_med.evaluation.kinds import Kind
from lejepa_med.evaluation.probe import Label, Prediction, Probe

NOTHING = "-"  # an image in which none of the labels can be seen; an empty field means that nobody looked
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "classification": ("label", "knn_label"),
    "multilabel": ("labels", "knn_labels"),
    "regression": ("value", "low", "high", "knn_value"),
}


@dataclass(frozen=True)
class LabelRow:
    """One labelled item: by `id`, or by `path` (and `item`); `group` overrides the table's group when given."""

    label: str
    id: str = ""
    path: str = ""
    item: str = ""
    group: str = ""


def read_labels(file: Path, *, split: str | None = None) -> list[LabelRow]:
    """Rows of a CSV with columns `label` and `id` or `path` (optionally item, group, split); others are skipped.

    Raises:
        UserError: missing file or columns, or no labelled row.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The labels {file} cannot be read: {error}.", remedy="Give a UTF-8 CSV file.") from error
    if "label" not in columns or not {"id", "path"} & set(columns):
        raise UserError(
            f"The labels {file} have the columns {', '.join(columns) or '(none)'}.",
            remedy="They need 'label' and one of 'path' (relative to the archive) or 'id'.",
        )
    found = [
        LabelRow(
            label=r["label"],
            id=r.get("id", ""),
            path=r.get("path", ""),
            item=r.get("item", ""),
            group=r.get("group", ""),
        )
        for r in rows
        if r["label"] and (split is None or r.get("split") == split)
    ]
    if not found:
        where = f" in the split '{split}'" if split is not None else ""
        raise UserError(f"The labels {file} hold no labelled row{where}.", remedy="Fill the column 'label'.")
    return found


@dataclass(frozen=True)
class Joined:
    """Rows of a table that have a label, in the table's order: their places, ids, labels and groups."""

    rows: list[int]
    ids: list[str]
    labels: list[Label]
    groups: list[str]


def join(table: EmbeddingTable, rows: Sequence[LabelRow], *, archive: Path, kind: Kind = "classification") -> Joined:
    """The labels of a table's items; rows without an embedding are left out.

    Args:
        table: the embeddings.
        rows: of read_labels.
        archive: folder to which the rows' paths are relative, as in the scan.
        kind: what the labels are; numbers are parsed, and several labels of one item are split at ';'.

    Raises:
        UserError: no row matches, one item has two labels, or a label is no number where numbers are wanted.
    """
    position = {name: index for index, name in enumerate(table.ids)}
    labels: dict[int, tuple[str, str]] = {}
    for row in rows:
        path = Path(row.path)
        if path.is_absolute() and path.is_relative_to(archive.resolve()):
            path = path.relative_to(archive.resolve())
        name = row.id or pseudonym("id", path.as_posix(), row.item)
        index = position.get(name)
        if index is None:
            continue
        group = group_id(row.group) if row.group else table.groups[index]
        if labels.setdefault(index, (row.label, group))[0] != row.label:
            raise UserError(f"'{row.path or row.id}' has two labels.", remedy="Keep one label for each item.")
    if not labels:
        raise UserError(
            f"Not one of the {len(rows)} labelled rows matches the {len(table.ids)} embedded items.",
            remedy="Paths must be relative to the archive's folder as it was embedded, and ids come from this "
            "installation's salt (LEJEPA_SALT to share it).",
        )
    chosen = sorted(labels)
    return Joined(
        rows=chosen,
        ids=[table.ids[i] for i in chosen],
        labels=[_parse(labels[i][0], kind) for i in chosen],
        groups=[labels[i][1] for i in chosen],
    )


def _parse(text: str, kind: Kind) -> Label:
    if kind == "multilabel":
        names = [part.strip() for part in text.split(";")]
        return tuple(dict.fromkeys(name for name in names if name not in ("", NOTHING)))
    if kind == "regression":
        try:
            return float(text)
        except ValueError:
            raise UserError(
                f"The label '{text}' is no number.", remedy="Write numbers with a decimal point, or use another --kind."
            ) from None
    return text


def write_predictions(file: Path, ids: Sequence[str], predictions: Sequence[Prediction], probe: Probe) -> None:
    """CSV of ids and the fields of the probe's kind, probabilities by class, novelty and uncertainty."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    columns = COLUMNS[probe.kind]
    writer.writerow(["id", *columns, "novelty", "uncertainty", *(f"p({name})" for name in probe.classes)])
    for name, p in zip(ids, predictions, strict=True):
        low, high = p.interval or ("", "")
        every = {
            "label": p.label,
            "knn_label": p.knn_label,
            "labels": ";".join(p.labels or ()) or NOTHING,
            "knn_labels": ";".join(p.knn_labels or ()) or NOTHING,
            "value": p.value,
            "low": low,
            "high": high,
            "knn_value": p.knn_value,
        }
        own = [every[column] for column in columns]
        chances = p.probabilities or {}
        scores = (p.novelty, p.uncertainty, *(chances[c] for c in probe.classes))
        writer.writerow([name, *own, *(f"{score:.6f}" for score in scores)])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, stream.getvalue())
