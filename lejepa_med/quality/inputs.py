"""What quality checks start from: vectors, groups, labels and metadata columns of an embedding table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.acquisition import acquisition_facts
from data_adapters.manifest import Manifest
from lejepa_med.errors import UserError
from lejepa_med.models.embed import ABOUT, EmbeddingTable
from lejepa_med.models.thumbnails import FILE, Thumbnails
from lejepa_med.probes.confounders import Value
from lejepa_med.probes.examples import Kind
from lejepa_med.probes.label_table import further_columns, join, read_labels


@dataclass(frozen=True, eq=False)
class Inputs:
    """Items with vectors (n, dim), ids, groups, labels (None: no labels at all) and columns by name, (n,) each."""

    name: str
    encoder: str
    vectors: NDArray[np.float32]
    ids: list[str]
    groups: list[str]
    labels: list[Any] | None
    columns: dict[str, list[Value]]
    notes: list[str]


def read_inputs(
    embeddings: Path,
    labels: Path | None,
    *,
    archive: Path | None = None,
    kind: Kind = "classification",
    split: str | None = None,
    scan: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
) -> Inputs:
    """Read an embedding table and, where given, a table of labels; of the second, items without a label are left out.

    Args:
        embeddings: folder of the embedding table.
        labels: CSV or Parquet with labels and further columns; None: the labels that the embedding table has.
        archive: folder to which paths are relative; None: that of `labels`.
        kind: what the labels are.
        split: the rows of `labels` to use.
        scan: folder of a scan or run, or its manifest.parquet, for facts of headers that the table lacks.
        group_column: of `labels`.
        label_column: of `labels`.

    Raises:
        UserError: no such table, no row of `labels` matches, or the manifest is of another archive.
    """
    table = EmbeddingTable.open(embeddings)
    context: dict[str, list[Value]] = dict(table.context)
    if scan is not None:
        context |= _of_manifest(scan, table.ids)
    if labels is None:
        own = [label or None for label in table.labels]
        known = any(own)
        return Inputs(
            table.name, table.encoder, table.vectors, table.ids, table.groups, own if known else None, context, []
        )
    read = read_labels(labels, split=split, group_column=group_column, label_column=label_column)
    given = join(table, read, archive=archive or labels.parent, kind=kind)
    return Inputs(
        name=table.name,
        encoder=table.encoder,
        vectors=table.vectors[given.rows],
        ids=given.ids,
        groups=given.groups,
        labels=list(given.labels),
        columns={
            **{name: [values[row] for row in given.rows] for name, values in context.items()},
            **further_columns(read, given.numbers),
        },
        notes=given.notes,
    )


def _of_manifest(scan: Path, ids: list[str]) -> dict[str, list[Value]]:
    file = scan / "manifest.parquet" if scan.is_dir() else scan
    manifest = Manifest.read(file)
    facts = {
        name: acquisition_facts(json.loads(text))
        for name, text in zip(manifest.column("id"), manifest.column("meta"), strict=True)
    }
    if not any(name in facts for name in ids):
        raise UserError(
            f"Not one item of the table is in {file}.",
            remedy="Give the scan of the archive that the table was made from.",
        )
    names = sorted({name for row in facts.values() for name in row})
    found: dict[str, list[Value]] = {name: [facts.get(one, {}).get(name) for one in ids] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def read_thumbnails(embeddings: Path) -> Thumbnails | None:
    """Return the pictures of an embedding table in the order of its rows, or None where it has none."""
    try:
        return Thumbnails(embeddings / ABOUT / FILE)
    except FileNotFoundError:
        return None
