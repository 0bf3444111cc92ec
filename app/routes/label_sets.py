"""/v1/label-sets: labels that people give to the items of an archive, together, and that probes learn from."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.formats import CSV
from app.api.openapi import PROBLEM_RESPONSES, json_only
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, as_error, not_found, problem
from app.core.limits import key_id
from app.jobs.labels import rows_of
from app.routes import Limit, Offset, Running, page
from app.routes.predictions import uncertain_items
from app.routes.probes import check_same_encoder, find_probe
from app.routes.search import columns_of
from app.store import LabelRow, LabelSetRow, now
from app.uploads.bodies import json_body
from data_adapters.errors import UserError
from data_adapters.tables import NO_LABELS, escaped, meaning
from lejepa_med.client.wire.labels import (
    Disagreement,
    ImportedLabels,
    LabelConflict,
    LabelSet,
    LabelSetChange,
    LabelSetDetail,
    LabelSetRequest,
    LabelSets,
    LabelTable,
    NextItems,
    SetLabel,
)
from lejepa_med.client.wire.probes import UncertainItem
from lejepa_med.probes.examples import kind_of
from lejepa_med.probes.label_table import parse_label, read_labels
from lejepa_med.probes.probe import most_different, most_uncertain

router = APIRouter(prefix="/v1/label-sets", tags=["label sets"], responses={404: PROBLEM_RESPONSES[404]})
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description='ETag of the set that the change was made for, or "*" for any')
]
WORDS = {"classification": "a text", "multilabel": "a list of texts", "regression": "a number"}
CHANGED: dict[int | str, dict[str, Any]] = {
    **PROBLEM_RESPONSES,
    412: {"description": "Changed meanwhile: both versions are in the answer", "model": LabelConflict},
    428: {**PROBLEM_RESPONSES[422], "description": "The request names no version in If-Match"},
}
TABLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Columns id and label", "content": {CSV: {"schema": {"type": "string"}}}}
}


@router.post(
    "",
    status_code=201,
    summary="Make a label set",
    responses=PROBLEM_RESPONSES,
    openapi_extra=json_only(LabelSetRequest),
)
@access("probe")
async def create_label_set(request: Request, response: Response, service: Running) -> LabelSet:
    """An empty set for the items of an archive: of classes, of several labels an item, or of numbers."""
    wanted = await json_body(request, LabelSetRequest, service.settings)
    return await run_sync(_create, service, wanted, response)


@router.get("", summary="List the label sets")
@access()
def list_label_sets(
    service: Running,
    request: Request,
    archive: Annotated[str | None, Query(max_length=300, description="only sets of this archive")] = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> LabelSets:
    """A page of the sets, newest first, without their labels."""
    found = service.store.label_sets(archive=archive, offset=offset, limit=limit + 1)
    rows, more = page(found, request, offset=offset, limit=limit)
    counts = service.store.label_counts([row.id for row in rows])
    return LabelSets(label_sets=[_set(row, counts.get(row.id, 0)) for row in rows], next=more)


@router.get("/{set_id}", summary="One label set")
@access()
def get_label_set(set_id: str, service: Running, response: Response) -> LabelSetDetail:
    """All labels. A change names the ETag of this answer, so that nobody overwrites what they have not seen."""
    row, labels = _find(service, set_id)
    _tag(response, row)
    return LabelSetDetail(**_set(row, len(labels)).model_dump(), labels=[_label(one) for one in labels])


@router.patch("/{set_id}", summary="Change a label set", responses=CHANGED, openapi_extra=json_only(LabelSetChange))
@access("probe")
async def change_label_set(
    set_id: str, request: Request, response: Response, service: Running, if_match: IfMatch = None
) -> LabelSet:
    """Labels are given, changed or removed, and classes named, in one step. It is on the disk before the answer."""
    version = _version(if_match)
    wanted = await json_body(request, LabelSetChange, service.settings)
    return await run_sync(_change, service, set_id, version, wanted, response)


@router.delete("/{set_id}", status_code=204, summary="Remove a label set")
@access("probe")
def delete_label_set(set_id: str, service: Running) -> Response:
    """Its labels go. Probes that learnt from it stay, with their examples."""
    _find(service, set_id)
    service.store.remove_label_set(set_id)
    return Response(status_code=204)


@router.get("/{set_id}/csv", summary="Download the labels", response_class=Response, responses=TABLE)
@access()
def get_csv(set_id: str, service: Running) -> Response:
    """As `lejepa-med probe` reads it: several labels of an item have `;` between them, and none is `[]`."""
    _, labels = _find(service, set_id)
    headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
    return StreamingResponse(_lines(labels), media_type=CSV, headers=headers)


@router.post("/{set_id}/csv", summary="Import labels", responses=CHANGED, openapi_extra=json_only(LabelTable))
@access("probe")
async def import_csv(
    set_id: str, request: Request, response: Response, service: Running, if_match: IfMatch = None
) -> ImportedLabels:
    """Labels by id, by the rules of all tables: `NA` and empty cells are missing, 1.0 is the class 1."""
    version = _version(if_match)
    wanted = await json_body(request, LabelTable, service.settings)
    return await run_sync(_import, service, set_id, version, wanted, response)


@router.get("/{set_id}/next", summary="What to label next", response_model_exclude_none=True)
@access()
async def list_next(
    set_id: str,
    service: Running,
    probe: Annotated[str | None, Query(max_length=300, description="whose uncertainty counts; none: distance")] = None,
    archive: Annotated[str | None, Query(max_length=300, description="by default that of the set")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> NextItems:
    """Items without a label in the set: with a probe those that are uncertain and unlike each other, else the farthest.

    The list is empty when all that is left looks like what is labelled.
    """
    return await run_sync(_next, service, set_id, probe, archive, limit)


def _create(service: Service, wanted: LabelSetRequest, response: Response) -> LabelSet:
    service.library.table(wanted.archive)  # 404 or 422
    at = now()
    row = LabelSetRow(
        id=new_id(),
        name=wanted.name,
        archive=wanted.archive,
        kind=wanted.kind,
        classes=_classes(wanted.kind, wanted.classes),
        version=1,
        change="",
        created=at,
        updated=at,
        key_id=key_id(),
    )
    service.store.add_label_set(row)
    response.headers["Location"] = f"/v1/label-sets/{row.id}"
    _tag(response, row)
    return _set(row, 0)


def _change(service: Service, set_id: str, version: int | None, wanted: LabelSetChange, response: Response) -> LabelSet:
    row, labels = _find(service, set_id)
    if wanted.labels:
        rows_of([one.id for one in wanted.labels], service.library.table(row.archive).ids)
    given = {one.id: _value(row.kind, one.label, place) for place, one in enumerate(wanted.labels)}
    if len(given) < len(wanted.labels):
        raise ProblemError(422, "invalid-request", "The request labels an item twice.", remedy="Give each id once.")
    renamed = {one.item: _renamed(one.value, wanted.rename) for one in labels}
    changed = {item: value for item, value in renamed.items() if wanted.rename} | given
    classes = row.classes if wanted.classes is None else wanted.classes
    classes = [wanted.rename.get(name, name) for name in classes]
    facts: dict[str, Any] = {} if wanted.name is None else {"name": wanted.name}
    facts["classes"] = _classes(row.kind, classes, (renamed | given).values())
    body = wanted.model_dump(mode="json", exclude_unset=True)
    written = _write(service, row, version, labels=changed, facts=facts, body=body)
    return (
        _change(service, set_id, version, wanted, response) if written is None else _answer(service, written, response)
    )


def _import(
    service: Service, set_id: str, version: int | None, wanted: LabelTable, response: Response
) -> ImportedLabels:
    row, labels = _find(service, set_id)
    given, missing = _read_csv(service, row, wanted.csv)
    known = set(service.library.table(row.archive).ids)
    taken = {item: value for item, value in given.items() if item in known}
    if not taken:
        raise ProblemError(
            422,
            "unknown-id",
            "Not one id of the CSV is an item of the archive.",
            remedy="Give ids of GET /v1/archives/{name}/ids; they come from the salt of the machine that scanned.",
        )
    before = {} if wanted.replace else {one.item: one.value for one in labels}
    facts = {"classes": _classes(row.kind, row.classes, (before | taken).values())}
    body = {"labels": [{"id": item, "label": value} for item, value in taken.items()], "replace": wanted.replace}
    written = _write(service, row, version, labels=taken, facts=facts, body=body, replace=wanted.replace)
    if written is None:
        return _import(service, set_id, version, wanted, response)
    answer = _answer(service, written, response)
    unknown = len(given) - len(taken)
    return ImportedLabels(**answer.model_dump(), imported=len(taken), unknown=unknown, missing=missing)


def _next(service: Service, set_id: str, probe_id: str | None, archive: str | None, limit: int) -> NextItems:
    row, labels = _find(service, set_id)
    name = archive or row.archive
    known = {one.item for one in labels}
    if probe_id is not None:
        found = find_probe(service, probe_id)
        table = service.library.table(name)
        check_same_encoder(found, table.encoder)
        probe = service.training.probe(found.id)
        chosen = most_uncertain(probe, table.vectors, table.ids, limit=limit, groups=table.groups, skip=known)
        items = uncertain_items(service, probe, name, table, chosen)
        return NextItems(label_set=row.id, archive=name, probe=found.id, by="uncertainty", items=items)
    base = service.search.base(name)
    rows = [place for place in base.rows_of(list(known)) if place is not None] if known else []
    chosen = most_different(base.vectors, rows, limit=limit)
    places = np.array([one.row for one in chosen], np.int64)
    ids, groups = (base.table[column].take(places).to_pylist() for column in ("id", "group"))
    told = zip(ids, groups, chosen, columns_of(base, places), strict=True)
    items = [
        UncertainItem(index=index, id=item, group=group, distance=one.distance, columns=columns)
        for index, (item, group, one, columns) in enumerate(told)
    ]
    return NextItems(label_set=row.id, archive=name, probe=None, by="distance", items=items)


def _write(
    service: Service,
    seen: LabelSetRow,
    version: int | None,
    *,
    labels: Mapping[str, Any],
    facts: Mapping[str, Any],
    body: dict[str, Any],
    replace: bool = False,
) -> LabelSetRow | None:
    """Make the next version; None where the request fits any version and the one that was `seen` has gone.

    Raises:
        ProblemError: 412 with both versions, the set is not of the version that the request names.
    """
    wanted = seen.version if version is None else version
    row, is_changed = service.store.change_label_set(
        seen.id, version=wanted, change=new_id(), labels=labels, facts=facts, replace=replace
    )
    if row is None:
        raise _missing()
    if is_changed or version is None:
        return row if is_changed else None
    theirs = [_label(one) for one in service.store.labels_since(row.id, version)]
    both = [one for one in theirs if one.id in labels and labels[one.id] != one.label]
    found = problem(
        412,
        "changed-meanwhile",
        f"The label set has been changed since version {version}; it has version {row.version} now.",
        remedy="Look at both versions, and send what shall hold with If-Match of the current version.",
    )
    count = service.store.label_counts([row.id]).get(row.id, 0)
    raise as_error(
        LabelConflict(
            **found.model_dump(),
            yours=body,
            current=_set(row, count),
            theirs=theirs,
            conflicts=[Disagreement(id=one.id, yours=labels[one.id], theirs=one.label) for one in both],
        )
    )


def _find(service: Service, set_id: str) -> tuple[LabelSetRow, list[LabelRow]]:
    found = service.store.labelled(set_id) if re.fullmatch("[0-9a-f]{32}", set_id) else None
    if found is None:
        raise _missing()
    return found


def _missing() -> ProblemError:
    return not_found("label set", remedy="GET /v1/label-sets lists the sets.")


def _version(if_match: str | None) -> int | None:
    """The version that a request names; None for any."""
    text = (if_match or "").strip()
    if text == "*":
        return None
    if not (found := re.fullmatch(r'"(\d{1,9})"', text)):
        raise ProblemError(
            428,
            "precondition-required",
            "The request does not say which version of the set it changes.",
            remedy='Send the header If-Match with the ETag of GET /v1/label-sets/{id}, such as "7".',
        )
    return int(found[1])


def _value(kind: str, label: Any, place: int) -> Any:
    """A label as it is stored: text in one spelling, lists without doubles."""
    if label is None:
        return None
    if kind_of([label]) != kind:
        raise ProblemError(
            422,
            "other-kind",
            f"The label at position {place} is of another kind than those of the set.",
            remedy=f"Give each item {WORDS[kind]}, or make another set.",
            index=place,
        )
    if kind == "regression":
        return float(label)
    names = [meaning(name) for name in ([label] if kind == "classification" else label)]
    if None in names:
        raise ProblemError(
            422,
            "invalid-request",
            f"The label at position {place} is a word for a missing value.",
            remedy="Give null to remove a label, or name the class otherwise, such as 'none'.",
            index=place,
        )
    return names[0] if kind == "classification" else list(dict.fromkeys(names))


def _classes(kind: str, wanted: Sequence[str], values: Any = ()) -> list[str]:
    """Names in the wanted order, and after them what is used beside; numbers have none."""
    if kind == "regression":
        return []
    used = {name for value in values if value is not None for name in ([value] if isinstance(value, str) else value)}
    return list(dict.fromkeys([*wanted, *sorted(used)]))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return list(dict.fromkeys(names.get(name, name) for name in value))
    return names.get(value, value) if isinstance(value, str) else value


def _read_csv(service: Service, row: LabelSetRow, text: str) -> tuple[dict[str, Any], int]:
    """Labels by id, and the number of rows without one."""
    (service.settings.data / "tmp").mkdir(exist_ok=True)
    with TemporaryDirectory(dir=service.settings.data / "tmp") as folder:
        file = Path(folder) / "labels.csv"
        file.write_text(text, encoding="utf-8")
        try:
            labels = read_labels(file)
            if row.kind == "regression":
                labels.table.check_numbers(["label"])
            given: dict[str, Any] = {}
            for one in labels.rows:
                value = parse_label(one, labels, row.kind)  # type: ignore[arg-type]
                value = list(value) if isinstance(value, tuple) else value
                if given.setdefault(one.id, value) != value:
                    raise UserError(f"The item of row {one.number} has two labels.", remedy="Keep one for each item.")
        except UserError as error:  # its words name the temporary file
            raise ProblemError(
                422, "bad-table", error.cause.replace(f" {file}", ""), remedy=error.remedy.replace(f" {file}", "")
            ) from None
    return given, labels.unlabelled


def _lines(labels: Sequence[LabelRow]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("id", "label"))
    for number, one in enumerate(labels, start=1):
        cell: Any = one.value
        if isinstance(cell, list):
            cell = ";".join(map(escaped, cell)) or NO_LABELS
        elif isinstance(cell, str):
            cell = escaped(cell)
        writer.writerow((one.item, cell))
        if number % 1000 == 0:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def _answer(service: Service, row: LabelSetRow, response: Response) -> LabelSet:
    _tag(response, row)
    return _set(row, service.store.label_counts([row.id]).get(row.id, 0))


def _tag(response: Response, row: LabelSetRow) -> None:
    response.headers["ETag"] = f'"{row.version}"'


def _set(row: LabelSetRow, count: int) -> LabelSet:
    names = ("id", "name", "archive", "kind", "classes", "version")
    facts = {name: getattr(row, name) for name in names}
    return LabelSet(**facts, count=count, created=_time(row.created), updated=_time(row.updated))


def _label(row: LabelRow) -> SetLabel:
    return SetLabel(id=row.item, label=row.value, version=row.version, at=_time(row.at))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
