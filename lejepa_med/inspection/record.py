"""One record of the contact sheet: pictures, facts and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.base import Adapter, Record, rejected
from data_adapters.errors import BadFileError
from data_adapters.manifest import Manifest
from lejepa_med.inspection import findings
from lejepa_med.inspection.display import Pixels, choose_channels, montage, picture, planes
from lejepa_med.inspection.findings import Values
from lejepa_med.inspection.raw import raw_picture

BINS = 40
MOST_ITEMS = 16  # slices or tiles of one record that are shown


@dataclass(frozen=True, kw_only=True)
class View:
    """One training view: its picture, and whether it shows background only."""

    image: Pixels
    kind: str
    empty: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the sheet shows of a record; pictures are missing where reading failed.

    Attributes:
        id: the record's pseudonym; `name` is its path, and empty unless names were asked for.
        facts: heading and text.
        warnings: sentences; the first is the gravest.
        raw: the file as a plain viewer shows it.
        prepared: the pixels for embedding; several slices or tiles as a grid.
        histogram: share of the prepared values in each of 40 bins of [0, 1].
    """

    id: str
    name: str = ""
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    raw: Pixels | None = None
    raw_how: str = ""
    prepared: Pixels | None = None
    prepared_how: str = ""
    views: Sequence[View] = ()
    histogram: Sequence[float] = field(default_factory=tuple)


def look_at(adapter: Adapter, manifest: Manifest, row: int, *, seed: int, names: bool = False) -> Look:
    """Read, prepare and augment row `row` of the manifest as training does in its first epoch with this seed."""
    record, spec = manifest.record(row), adapter.spec
    ident = str(manifest.column("id")[row])
    name = f"{manifest.column('path')[row]} {record.item}".strip() if names else ""
    raw, raw_how = raw_picture(record, _bands(record.meta))
    facts = _facts(record)
    try:
        prepared = adapter.prepare(record)
        rng = np.random.default_rng((seed, 0, row, 0, 0))  # the key of the first epoch's first sample
        views = adapter.views(adapter.read(record, rng), rng)
    except (BadFileError, OSError, ValueError, EOFError, RuntimeError) as error:  # as the trainer treats them
        refusal = rejected(record.uri, error)
        said = refusal.reason if not isinstance(error, BadFileError) else f"{refusal.reason}. {refusal.remedy}"
        return Look(id=ident, name=name, facts=facts, warnings=[f"refused: {said}"], raw=raw, raw_how=raw_how)
    items = [planes(item) for item in prepared]
    values, view_values = Values.of(items), [Values.of([planes(view)]) for view in views]
    empty = findings.empty_views(values, view_values)
    size = [float(n) for n in record.meta.get("size", ())] if isinstance(record.meta.get("size"), Sequence) else []
    warnings = [
        *findings.contract(prepared, views, spec),
        *findings.of_prepared(values, raw=_raw_values(raw), size=size, side=spec.embed_size),
        *findings.of_views(views, empty, spec.n_global),
    ]
    shown = choose_channels(items[0].shape[0], _bands(record.meta))
    cut = f", {MOST_ITEMS} of them shown" if len(items) > MOST_ITEMS else ""
    several = f"{len(items)} slices or tiles{cut}, " if len(items) > 1 else ""
    facts += [
        ("prepared", f"{' x '.join(map(str, prepared.shape))} {str(prepared.dtype).removeprefix('torch.')}"),
        ("values", f"{values.low:.3f} to {values.high:.3f} (percentiles .5 and 99.5)"),
        ("black / saturated", f"{values.black:.1%} / {values.saturated:.1%}"),
        ("background only", _which(empty, spec.n_global)),
    ]
    return Look(
        id=ident,
        name=name,
        facts=facts,
        warnings=warnings,
        raw=raw,
        raw_how=raw_how,
        prepared=montage([picture(item, shown) for item in items[:MOST_ITEMS]]),
        prepared_how=several + shown.words,
        views=[
            View(image=picture(planes(view), shown), kind=_kind(k, spec.n_global), empty=k in empty)
            for k, view in enumerate(views)
        ],
        histogram=_histogram(items),
    )


def _kind(index: int, n_global: int) -> str:
    return f"global {index + 1}" if index < n_global else f"local {index - n_global + 1}"


def _which(empty: Sequence[int], n_global: int) -> str:
    return ", ".join(_kind(k, n_global) for k in empty) or "no view"


def _raw_values(raw: Pixels | None) -> Values | None:
    return None if raw is None else Values.of([np.asarray(raw / 255, np.float32)])


def _histogram(items: Sequence[NDArray[np.float32]]) -> list[float]:
    counts = sum(np.histogram(item, bins=BINS, range=(0, 1))[0] for item in items)
    return [float(share) for share in np.asarray(counts) / max(1, np.sum(counts))]


def _bands(meta: Mapping[str, Any]) -> list[str]:
    bands = meta.get("bands", ())
    return [name.strip() for name in bands.split(",")] if isinstance(bands, str) else [str(name) for name in bands]


def _facts(record: Record) -> list[tuple[str, str]]:
    """What scan found; no name, path or free text of a header."""
    meta, facts = record.meta, []
    for key, heading, unit in (
        ("size", "size", ""),
        ("bits", "bit depth", " bits"),
        ("spacing", "spacing", " mm"),
        ("mpp", "resolution", " um/px"),
        ("pixel_scale", "pixel scale", " arcsec/px"),
        ("bands", "bands", ""),
        ("unit", "unit", ""),
    ):
        if key in meta:
            facts.append((heading, _text(meta[key]) + unit))
    if len(meta.get("files", ())) > 1:
        facts.append(("files", str(len(meta["files"]))))
    if record.samples > 1:
        facts.append(("samples an epoch", str(record.samples)))
    if record.label is not None:
        facts.append(("label", record.label))
    return facts


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " x ".join(_text(part) for part in value)
    return str(value)
