"""Columns of tables as the lab page colours by them: a description as JSON, and the values as one typed array."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lejepa_med.client.wire.images import TableColumn

NAMED = 1000  # values of a column that the description lists
ID_LETTERS = 32
Code = Literal["uint8", "uint16", "uint32"]
CODES: dict[Code, int] = {"uint8": 2**8 - 1, "uint16": 2**16 - 1, "uint32": 2**32 - 1}  # with the code of no value


def describe(name: str, values: pa.ChunkedArray) -> TableColumn:
    """The description of a column."""
    return _read(name, values)[0]


def content(name: str, values: pa.ChunkedArray) -> bytes:
    """The values of a column, as its description says."""
    return _read(name, values)[1]


def _read(name: str, values: pa.ChunkedArray) -> tuple[TableColumn, bytes]:
    if name == "id":
        letters = np.array(values.to_pylist(), f"S{ID_LETTERS}")
        return TableColumn(name=name, kind="id", dtype="char32", distinct=len(letters), missing=0), letters.tobytes()
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _numbers(name, values)
    if pa.types.is_list(kind):  # the labels of one image
        values = pa.chunked_array([pa.array(["; ".join(one or []) for one in values.to_pylist()], pa.string())])
    elif not pa.types.is_string(kind):
        values = values.cast(pa.string())
    return _texts(name, values)


def _numbers(name: str, values: pa.ChunkedArray) -> tuple[TableColumn, bytes]:
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(), np.float64)
    finite = numbers[np.isfinite(numbers)]
    found = TableColumn(
        name=name,
        kind="number",
        dtype="float32",
        distinct=len(np.unique(finite)),
        missing=int(np.isnan(numbers).sum()),
        min=float(finite.min()) if len(finite) else None,
        max=float(finite.max()) if len(finite) else None,
    )
    return found, numbers.astype("<f4").tobytes()


def _texts(name: str, values: pa.ChunkedArray) -> tuple[TableColumn, bytes]:
    counted = pc.value_counts(values.drop_null())
    words, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    order = sorted(range(len(words)), key=lambda place: (-counts[place], words[place]))
    ordered = pa.array([words[place] for place in order], pa.string())
    code, missing = next((code, most) for code, most in CODES.items() if len(order) < most)
    places = pc.index_in(values, value_set=ordered).cast(pa.int64()).fill_null(missing)
    codes = np.asarray(places.to_numpy()).astype(np.dtype(code).newbyteorder("<"))
    found = TableColumn(
        name=name,
        kind="text",
        dtype=code,
        distinct=len(order),
        missing=values.null_count,
        values=ordered[:NAMED].to_pylist(),
        counts=[counts[place] for place in order[:NAMED]],
    )
    return found, codes.tobytes()
