"""Embedding tables and predictions on them as CSV, Parquet and FITS."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.atomic import new_file, write_text
from data_adapters.errors import require
from lejepa_med.errors import UserError
from lejepa_med.models.embed import EmbeddingTable, read_info, read_shards, whole_ids
from lejepa_med.probes.names import Names
from lejepa_med.probes.output import prediction_columns
from lejepa_med.probes.probe import Prediction, Probe

VECTOR = "vector"
COORDINATES = (("ra", "right ascension", 0.0, 360.0), ("dec", "declination", -90.0, 90.0))


def predict_table(folder: Path, probe: Probe) -> list[Prediction]:
    """Predictions for every row of a finished table.

    Raises:
        UserError: no table there, or one of another encoder than the probe's.
    """
    table = EmbeddingTable.open(folder)
    if probe.encoder != table.encoder:
        raise UserError(
            f"The probe was trained on the vectors of another encoder than {folder} holds.",
            remedy="Train a probe on a table of this encoder (lejepa-med probe), or embed with the probe's.",
        )
    return probe.predict(table.vectors, ids=table.ids, groups=table.groups)


def export_table(folder: Path, *, probe: Probe | None = None, names: Names | None = None, vectors: bool) -> pa.Table:
    """The rows of an embedding table: id, group, label, its further columns, then what is asked for.

    Args:
        folder: of a finished table.
        probe: adds the columns of `lejepa-med predict`.
        names: adds path, and item where files hold several.
        vectors: keep the column `vector`, a list of float32 of fixed length.

    Raises:
        UserError: no finished table, a probe of another encoder, or names that know none of the ids.
    """
    read_info(folder)  # refuses what is no finished table
    table = read_shards(folder)
    vector = table.column(VECTOR)
    table = table.drop_columns([VECTOR])
    if names is not None:
        cells = names.cells(whole_ids(folder))
        for place, name in enumerate(names.columns):
            table = table.append_column(name, pa.array([cell[place] for cell in cells]))
    if probe is not None:
        for name, values in prediction_columns(predict_table(folder, probe)).items():
            taken = name in table.column_names  # the catalogue's label, beside the predicted one
            table = table.append_column(f"predicted {name}" if taken else name, values)
    return table.append_column(VECTOR, vector) if vectors else table


def write_table(file: Path, table: pa.Table) -> None:
    """Write .csv, .parquet or .fits, whole or not at all."""
    {".csv": _write_csv, ".parquet": _write_parquet, ".fits": _write_fits}[file.suffix.lower()](file, table)


def _write_parquet(file: Path, table: pa.Table) -> None:
    with new_file(file) as draft:
        pq.write_table(table.replace_schema_metadata(None), draft)


def _flat(value: Any) -> Any:
    return ";".join(map(str, value)) or "[]" if isinstance(value, list) else "" if value is None else value


def _write_csv(file: Path, table: pa.Table) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream)
    wide = [name for name in table.column_names if name == VECTOR]
    dim = table.schema.field(VECTOR).type.list_size if wide else 0
    kept = [name for name in table.column_names if name not in wide]
    writer.writerow([*kept, *(f"vector_{number}" for number in range(dim))])
    for batch in table.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            vector = [f"{value:.9g}" for value in row[VECTOR]] if wide else []
            writer.writerow([*(_flat(row[name]) for name in kept), *vector])
    write_text(file, stream.getvalue())


def _write_fits(file: Path, table: pa.Table) -> None:
    """A binary table (FITS 4.0, 7.3): text as ASCII, NaN for missing numbers, -2^63 for missing whole numbers."""
    fits = require("astropy.io.fits", extra="galaxy")
    columns = []
    for name in table.column_names:
        values = table.column(name).combine_chunks()
        unit = {"ra": "deg", "dec": "deg"}.get(name.lower())
        if name == VECTOR:
            dim = values.type.list_size
            array = np.asarray(values.flatten(), np.float32).reshape(len(values), dim)
            columns.append(fits.Column(name, f"{dim}E", array=array))
        elif pa.types.is_boolean(values.type) and not values.null_count:
            columns.append(fits.Column(name, "L", array=np.asarray(values.to_pylist(), bool)))
        elif pa.types.is_integer(values.type):
            missing = -(2**63)
            numbers = np.array([missing if v is None else v for v in values.to_pylist()], np.int64)
            null = missing if values.null_count else None
            columns.append(fits.Column(name, "K", array=numbers, null=null, unit=unit))
        elif pa.types.is_floating(values.type):
            numbers = np.array([np.nan if v is None else v for v in values.to_pylist()], np.float64)
            columns.append(fits.Column(name, "D", array=numbers, unit=unit))
        else:
            # FITS text is ASCII: what is not becomes \xNN, so that nothing is lost in silence
            texts = [str(_flat(v)).encode("ascii", "backslashreplace") for v in values.to_pylist()]
            columns.append(fits.Column(name, f"{max([1, *map(len, texts)])}A", array=np.array(texts, "S")))
    with new_file(file) as draft, draft.open("wb") as stream:
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="EMBEDDINGS")]).writeto(stream)


def coordinate_note(table: pa.Table) -> str:
    """A sentence on the sky coordinates: that there are none, or how many rows lie outside of their range; or ''."""
    lower = {name.lower(): name for name in table.column_names}
    if not {"ra", "dec"} <= lower.keys():
        return "the table has no columns ra and dec; embed --columns ra,dec keeps them from the catalogue or the header"
    for name, title, low, high in COORDINATES:
        values = np.array(table.column(lower[name]).to_numpy(zero_copy_only=False), np.float64)
        wrong = int((~((values >= low) & (values <= high))).sum())
        if wrong:
            return f"{wrong:,} rows have no {title} between {low:g} and {high:g} degrees"
    return ""
