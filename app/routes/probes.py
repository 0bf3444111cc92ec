"""/v1/probes: a handful of labels becomes a trained probe."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.errors import ProblemError, first_bad, not_found
from app.forms import PROBLEM_RESPONSES, TEXT_FIELDS, body_of, check_fields, is_json, json_body, parse_field
from app.items import Field, sources
from app.routes import Running
from app.routes.jobs import to_job
from app.schemas import Job, Label, Name, Probe, ProbeDetail, ProbeRequest, Probes
from app.service import Service, new_id
from app.store import JobRow, ProbeRow
from app.training import Plan
from app.uploads import Form, receive
from data_adapters.errors import UserError

router = APIRouter(prefix="/v1/probes", tags=["probes"])
FIELDS = {
    **TEXT_FIELDS,
    "labels": {
        "type": "string",
        "description": "JSON list with the class of each file, in the order of the files",
        "examples": ['["spiral", "elliptical"]'],
    },
    "groups": {
        "type": "string",
        "description": "JSON list with the patient, slide case or field of each file; by default each file is its own",
    },
    "name": {"type": "string", "description": "what the probe is called"},
    "folds": {"type": "integer", "default": 5, "description": "folds of the cross-validation, 2 to 20"},
    "seed": {"type": "integer", "default": 0},
}


@router.post(
    "",
    status_code=202,
    summary="Train a probe",
    response_model=Job,
    responses=PROBLEM_RESPONSES,
    openapi_extra=body_of(FIELDS, required=("labels",), model=ProbeRequest),
)
async def create_probe(request: Request, response: Response, service: Running) -> Job:
    """Labelled files (multipart), or ids of an embedding table with labels (JSON), become a job.

    The answer is 202 with the job's address in Location: from then on the job survives any end of the service.
    The probe has the job's id.
    """
    if is_json(request):
        wanted = await json_body(request, ProbeRequest, service.settings)
        row = await run_sync(_from_archive, service, wanted)
    else:
        async with receive(request, service.settings) as form:
            check_fields(form, set(FIELDS))
            row = await run_sync(_from_files, service, form)
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return to_job(row)


@router.get("", summary="List the probes")
def list_probes(service: Running) -> Probes:
    """All probes, newest first."""
    return Probes(probes=[Probe(**_facts(row)) for row in service.store.probes()])


@router.get("/{probe_id}", summary="One probe with its quality", responses={404: PROBLEM_RESPONSES[404]})
def get_probe(probe_id: str, service: Running) -> ProbeDetail:
    """Metrics are those of cross-validation over groups, never of the examples that were fitted."""
    row = find_probe(service, probe_id)
    return ProbeDetail(**_facts(row), metrics=row.metrics, receipt=row.receipt)


def find_probe(service: Service, probe_id: str) -> ProbeRow:
    """A probe's row, or 404."""
    row = service.store.probe(probe_id)
    if row is None:
        raise not_found("probe", remedy="GET /v1/probes lists the probes; one in training is at GET /v1/jobs.")
    return row


def _facts(row: ProbeRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "encoder": row.encoder,
        "fingerprint": row.fingerprint,
        "labels": row.labels,
        "count": row.count,
        "created": datetime.fromtimestamp(row.created, UTC),
    }


def rows_of(ids: Sequence[str], known: Sequence[str]) -> list[int]:
    """Row numbers of `ids` in a table.

    Raises:
        ProblemError: 422, an id is not in the table.
    """
    place = {name: row for row, name in enumerate(known)}
    for index, wanted in enumerate(ids):
        if wanted not in place:
            raise ProblemError(
                422,
                "unknown-id",
                f"The archive has no item with the id at position {index}.",
                remedy="GET /v1/archives/{name}/ids lists the ids.",
                index=index,
            )
    return [place[wanted] for wanted in ids]


def _from_archive(service: Service, wanted: ProbeRequest) -> JobRow:
    table = service.library.table(wanted.archive)
    encoder_id = service.library.encoder_of(table.encoder)
    if wanted.encoder is not None and wanted.encoder != encoder_id:
        raise UserError(
            "The archive was not embedded with this encoder.",
            remedy="Leave out 'encoder', or embed the archive again with it: lejepa-med embed",
        )
    ids = [item.id for item in wanted.labels]
    if len(set(ids)) < len(ids):
        raise UserError("An id is labelled twice.", remedy="Give each id once.")
    rows = rows_of(ids, table.ids)
    labels = [item.label for item in wanted.labels]
    # The table's groups are pseudonyms already; kept, they give the same folds as `lejepa-med probe`.
    given = iter(_pseudonyms([item.group for item in wanted.labels if item.group]))
    groups = [next(given) if item.group else table.groups[row] for item, row in zip(wanted.labels, rows, strict=True)]
    plan = Plan(
        name=wanted.name or wanted.archive[:120],
        encoder=encoder_id or table.name,
        fingerprint=table.encoder,
        labels=labels,
        groups=groups,
        folds=wanted.folds,
        seed=wanted.seed,
        files=[],
    )
    return _accept(service, plan, vectors=table.vectors[rows])


def _from_files(service: Service, form: Form) -> JobRow:
    labels: list[str] = parse_field(form, "labels", list[Label], [])
    groups: list[str] | None = parse_field(form, "groups", list[Label])
    count = len(form.uploads)
    for what, given in (("labels", labels), ("groups", groups)):
        if given is not None and len(given) != count:
            raise ProblemError(
                422,
                "invalid-request",
                f"The request has {count} files and {len(given)} {what}.",
                remedy=f"Give '{what}' as a JSON list with one text for each file, in the order of the files.",
            )
    encoder_id, encoder, _ = service.library.encoder(form.fields.get("encoder") or None)
    field = Field.parse(form.fields.get("region"), form.fields.get("mpp"))
    # Headers are read now, so that a wrong file is refused at once and not by a failed job.
    found = sources(encoder.adapter, form.uploads, field, settings=service.settings)
    for index, source in enumerate(found):
        if source.problem is not None:
            raise first_bad(source.problem, index, source.file_index)
    for index, number in sorted(Counter(source.file_index for source in found).items()):
        if number != 1:
            raise ProblemError(
                422,
                "several-items",
                f"File {index} holds {number} items, but has one label.",
                remedy="Send each labelled image, series or volume as a file of its own.",
                file_index=index,
            )
    plan = Plan(
        name=_name(form, encoder_id),
        encoder=encoder_id,
        fingerprint=encoder.fingerprint,
        labels=labels,
        groups=_pseudonyms(groups or [str(index) for index in range(count)]),
        folds=parse_field(form, "folds", Annotated[int, Ge(2), Le(20)], 5),
        seed=parse_field(form, "seed", Annotated[int, Ge(0), Le(2**31 - 1)], 0),
        files=[(upload.path.name, upload.size) for upload in form.uploads],
        region=field.region,
        mpp=field.mpp,
    )
    return _accept(service, plan, form=form)


def _name(form: Form, default: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    text = form.fields.get("name", "")
    if not text:
        return default[:120]
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError:
        raise ProblemError(422, "invalid-request", "name has more than 120 characters or none.") from None


def _accept(service: Service, plan: Plan, *, vectors: np.ndarray | None = None, form: Form | None = None) -> JobRow:
    counts = Counter(plan.labels)
    scarce = [label for label, number in counts.items() if number < 2]
    if len(counts) < 2 or scarce:
        raise UserError(
            "A probe needs two classes or more, and two examples or more of each class.",
            remedy=f"Label more examples of '{scarce[0]}'." if scarce else "Label examples of another class.",
        )
    job_id = new_id()
    draft = form.folder if form is not None else service.settings.temporary(job_id)
    service.training.accept(job_id, draft, asdict(plan), vectors=vectors)
    return service.queue_job(job_id, service.training.kind)


def _pseudonyms(groups: Sequence[str]) -> list[str]:
    """Groups may be patient names, so only which are equal is kept."""
    order = {name: f"g{number}" for number, name in enumerate(dict.fromkeys(groups))}
    return [order[name] for name in groups]
