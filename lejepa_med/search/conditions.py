"""Conditions on an item's metadata: as they are sent, as a mask over rows, and as SQL for the indexes."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lejepa_med.errors import UserError
from lejepa_med.search.filters import LEAST, MOST, Condition


class ConditionError(UserError):
    """A condition that does not fit the table: which one of them, and whether the column is not there at all."""

    def __init__(self, cause: str, *, remedy: str, index: int, is_unknown: bool) -> None:
        super().__init__(cause, remedy=remedy)
        self.index, self.is_unknown = index, is_unknown


def require_known(conditions: Sequence[Condition], columns: Mapping[str, pa.DataType]) -> None:
    """Refuse conditions that do not fit the table's columns.

    Raises:
        ConditionError: no such column, or a value of another kind than the column's.
    """
    known = {"group": pa.string(), **columns}
    for index, condition in enumerate(conditions):
        if condition.column not in known:
            raise ConditionError(
                f"The archive has no column as named at position {index} of the filters.",
                remedy=f"It has: {', '.join(known)}. lejepa-med embed --columns puts further ones into a new table.",
                index=index,
                is_unknown=True,
            )
        kind = known[condition.column]
        if not all(_fits(value, kind) for value in condition.values) or (condition.is_range and not is_number(kind)):
            what = "texts" if pa.types.is_string(kind) else "numbers" if is_number(kind) else "true and false"
            raise ConditionError(
                f"Position {index} of the filters does not fit its column, which holds {what}.",
                remedy="Give values of the column's kind; min and max are for numbers.",
                index=index,
                is_unknown=False,
            )


def mask(conditions: Sequence[Condition], table: pa.Table) -> np.ndarray:
    """(N,) bool: rows of `table` that meet all conditions, which fit it (`require_known`)."""
    keep = np.ones(len(table), bool)
    for condition in conditions:
        column = table[condition.column]
        kind = column.type
        if is_number(kind):
            column = column.cast(pa.int64() if pa.types.is_integer(kind) else pa.float64())
        if condition.is_range:
            least, most = _limits(condition, kind)
            if least is not None:
                keep &= _true(pc.greater_equal(column, least))
            if most is not None:
                keep &= _true(pc.less_equal(column, most))
            continue
        found = pc.is_in(column, value_set=pa.array(_values(condition, kind), column.type))
        keep &= ~_true(found) if condition.none_of is not None else _true(found)
    return keep


def to_sql(
    conditions: Sequence[Condition],
    columns: Mapping[str, pa.DataType],
    codes: Mapping[str, int],
    literal: Callable[[bool | int | float | str], str],
) -> list[str]:
    """Each condition as SQL over the columns `g` (group code) and `c0`, `c1`, ... in the order of `columns`.

    Names never enter the text, and values only by way of `literal`, which quotes or binds them. `codes` are those of
    the groups that the table has.
    """
    clauses = []
    values: Sequence[bool | int | float | str]
    for condition in conditions:
        if condition.column == "group":
            name, values = (
                "g",
                [codes[value] for value in condition.values if isinstance(value, str) and value in codes],
            )
        else:
            kind = columns[condition.column]
            name, values = f"c{list(columns).index(condition.column)}", _values(condition, kind)
            if condition.is_range:
                least, most = _limits(condition, kind)
                clauses += [f"{name} >= {literal(least)}"] if least is not None else []
                clauses += [f"{name} <= {literal(most)}"] if most is not None else []
                continue
        listed = ", ".join(literal(value) for value in values)
        if condition.none_of is None:
            clauses.append(f"{name} IN ({listed})" if values else "1 = 0")
        elif values:
            clauses.append(f"({name} IS NULL OR {name} NOT IN ({listed}))")
    return clauses


def _true(found: pa.ChunkedArray) -> np.ndarray:
    """A row without a value meets nothing."""
    return np.asarray(pc.fill_null(found, False).to_numpy(), bool)


def _values(condition: Condition, kind: pa.DataType) -> list[bool | int | float | str]:
    """The condition's values as the column can hold them: a float does not hold the whole numbers of 64 bits."""
    if not pa.types.is_integer(kind):
        return condition.values
    return [int(v) for v in condition.values if not isinstance(v, str) and LEAST <= v <= MOST and v == int(v)]


def _limits(condition: Condition, kind: pa.DataType) -> tuple[float | None, float | None]:
    """The condition's range, for whole numbers in whole numbers; one that none of them meets is the empty one."""
    if not pa.types.is_integer(kind):
        return tuple(None if end is None else float(end) for end in (condition.min, condition.max))  # type: ignore[return-value]
    least = None if condition.min is None else math.ceil(condition.min)
    most = None if condition.max is None else math.floor(condition.max)
    if (least is not None and least > MOST) or (most is not None and most < LEAST):
        return MOST, LEAST
    return (
        None if least is None else max(least, LEAST),
        None if most is None else min(most, MOST),
    )


def is_number(kind: pa.DataType) -> bool:
    """Return whether a column holds whole numbers or floats."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _fits(value: bool | int | float | str, kind: pa.DataType) -> bool:
    if isinstance(value, str):
        return bool(pa.types.is_string(kind))
    return bool(pa.types.is_boolean(kind)) if isinstance(value, bool) else is_number(kind)
