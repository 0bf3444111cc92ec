"""/v1/probes: a handful of labels becomes a trained probe, and more labels its next version."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, not_found
from app.encoders.run_probes import ID
from app.jobs.labels import Plan, given_labels, pick, plan_of_archive, plan_of_files
from app.routes import Limit, Offset, Running, page
from app.routes.jobs import accepted
from app.store import ProbeRow
from app.uploads.bodies import Form, check_fields, is_json, json_body, receive
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.probes import (
    Evaluation,
    LabelsRequest,
    Probe,
    ProbeDetail,
    ProbeRequest,
    Probes,
    ProbeVersion,
    UnusableProbe,
)
from lejepa_med.probes.evaluation import HEADLINE, evaluate
from lejepa_med.probes.examples import kind_of
from lejepa_med.probes.probe import check_labels

router = APIRouter(prefix="/v1/probes", tags=["probes"])
LABEL_FIELDS: dict[str, dict[str, Any]] = {
    "region": TEXT_FIELDS["region"],
    "mpp": TEXT_FIELDS["mpp"],
    "keys": {**TEXT_FIELDS["keys"], "description": "as of POST /v1/embeddings; an error about a file names its key"},
    "labels": {
        "type": "string",
        "description": "JSON list with the label of each file, in the order of the files: all texts (classes), all "
        "numbers (a quantity), or all lists of texts (any number of labels an image); files whose label is null or a "
        "word for a missing value (NA) are left out and counted",
        "examples": ['["spiral", "elliptical"]'],
    },
    "groups": {
        "type": "string",
        "description": "JSON list with the patient, slide case or field of each file; by default what the file itself "
        "says (DICOM patient number, sky position), else each file is its own",
    },
    "folds": {"type": "integer", "default": 5, "description": "folds of the cross-validation, 2 to 20"},
}
FIELDS: dict[str, dict[str, Any]] = {
    "encoder": TEXT_FIELDS["encoder"],
    **LABEL_FIELDS,
    "name": {"type": "string", "description": "what the probe is called"},
    "seed": {"type": "integer", "default": 0},
    "balanced": {
        "type": "boolean",
        "description": "classes weigh equally whatever their counts; by default so for classes, not for lists",
    },
}
ACCEPTED: dict[str, Any] = {"status_code": 202, "response_model": Job, "responses": PROBLEM_RESPONSES}


@router.post(
    "", summary="Train a probe", openapi_extra=body_of(FIELDS, required=("labels",), model=ProbeRequest), **ACCEPTED
)
@access("probe")
async def create_probe(request: Request, response: Response, service: Running) -> Job:
    """Labelled files (multipart), or ids of an embedding table with labels (JSON), become a job.

    The answer is 202 with the job's address in Location: from then on the job survives any end of the service.
    The probe has the job's id. Texts as labels make a probe of classes, numbers one of a quantity, lists of texts one
    of labels that an image may have none, one or several of.
    """
    if is_json(request):
        wanted = await json_body(request, ProbeRequest, service.settings)
        return await run_sync(_from_archive, service, wanted, response)
    async with receive(request, service.settings) as form:
        check_fields(form, set(FIELDS))
        return await run_sync(_from_files, service, form, response)


@router.post(
    "/{probe_id}/labels",
    summary="Add labels to a probe",
    openapi_extra=body_of(LABEL_FIELDS, required=("labels",), model=LabelsRequest),
    **ACCEPTED,
)
@access("probe")
async def add_labels(probe_id: str, request: Request, response: Response, service: Running) -> Job:
    """More labels, or better ones for items that have some, become a job that makes the probe's next version.

    The new version learns from all labels of the newest one and these, whichever version the address names. An item
    (the same id of the same archive, or a file with the same content) that was labelled before gets the new label.
    Older versions stay as they are.
    """
    if is_json(request):
        wanted = await json_body(request, LabelsRequest, service.settings)
        return await run_sync(_more_of_archive, service, probe_id, wanted, response)
    async with receive(request, service.settings) as form:
        check_fields(form, set(LABEL_FIELDS))
        return await run_sync(_more_files, service, probe_id, form, response)


@router.get("", summary="List the probes")
@access()
def list_probes(service: Running, request: Request, offset: Offset = 0, limit: Limit = 100) -> Probes:
    """A page of the versions of all probes, newest first: the service's own, and those of the runs directory.

    The first page also names folders of the runs directory that hold a damaged probe.
    """
    known = service.training.run_probes.known()
    own = service.store.probes(limit=offset + limit + 1)
    every = sorted([*own, *(one.row for one in known.values() if one.row)], key=lambda row: (-row.created, row.id))
    rows, more = page(every[offset:], request, offset=offset, limit=limit)
    unusable = [
        UnusableProbe(id=name, detail=one.problem.problem.detail, remedy=one.problem.problem.remedy)
        for name, one in known.items()
        if one.problem is not None and offset == 0
    ]
    return Probes(probes=[Probe(**_facts(service, row)) for row in rows], unusable=unusable, next=more)


@router.get("/{probe_id}", summary="One probe with its quality", responses={404: PROBLEM_RESPONSES[404]})
@access()
def get_probe(probe_id: str, service: Running) -> ProbeDetail:
    """Metrics are those of cross-validation over groups, never of the examples that were fitted."""
    row = find_probe(service, probe_id)
    versions = [_version(one) for one in service.store.versions(row.series) or [row]]
    return ProbeDetail(**_facts(service, row), metrics=row.metrics, receipt=row.receipt, versions=versions)


@router.get(
    "/{probe_id}/evaluation",
    summary="What lies behind a probe's scores",
    response_model_by_alias=True,
    responses={404: PROBLEM_RESPONSES[404]},
)
@access()
def get_evaluation(probe_id: str, service: Running) -> Evaluation:
    """Out-of-fold answers to the examples: confusion matrix with the images behind each cell, ROC, calibration."""
    row = find_probe(service, probe_id)
    found = evaluate(service.training.probe(row.id))
    for one in found["rows"]:
        # Ids of examples are ARCHIVE/ID, or file/HASH; the command line's are bare.
        archive, _, name = one["id"].rpartition("/")
        one |= {"id": name, "archive": archive or None} if archive != "file" else {}
    return Evaluation.model_validate({"probe": row.id, **found})


@router.api_route("/{probe_id}", methods=["DELETE", "PATCH", "PUT"], include_in_schema=False)
@access("probe")
def change_probe(probe_id: str, service: Running) -> Response:
    """No probe is changed or removed: predictions name the version that made them."""
    row = find_probe(service, probe_id)
    if is_read_only(row):
        raise read_only()
    raise ProblemError(
        409,
        "not-changeable",
        "The versions of a probe are kept as they are, because predictions name the version that made them.",
        remedy="Add labels to make a new version (POST /v1/probes/{id}/labels), or train another probe.",
    )


def is_read_only(row: ProbeRow) -> bool:
    """Whether a probe is one of the runs directory."""
    return not ID.fullmatch(row.id)


def read_only() -> ProblemError:
    """409 for what would change a probe of the runs directory."""
    return ProblemError(
        409,
        "read-only",
        "This probe was trained with 'lejepa-med probe' and lies in the runs directory, which the service only reads.",
        remedy="The operator removes its folder, or trains it again with more labels (lejepa-med probe); or train a "
        "probe of the service's own: POST /v1/probes",
    )


def find_probe(service: Service, probe_id: str) -> ProbeRow:
    """A probe's row, or 404."""
    row = service.training.find(probe_id)
    if row is None:
        raise not_found("probe", remedy="GET /v1/probes lists the probes; one in training is at GET /v1/jobs.")
    return row


def check_same_encoder(row: ProbeRow, fingerprint: str) -> None:
    """422 where a table's vectors are not those that a probe reads."""
    if fingerprint != row.fingerprint:
        raise ProblemError(
            422,
            "other-encoder",
            "The archive was embedded with another encoder than the probe's.",
            remedy="Embed the archive with the probe's encoder: lejepa-med embed",
        )


def _facts(service: Service, row: ProbeRow) -> dict[str, Any]:
    names = ("id", "series", "version", "parent", "kind", "name", "encoder", "fingerprint", "labels", "count")
    found = {**{name: getattr(row, name) for name in names}, "created": _time(row.created)}
    found["cautions"] = row.metrics.get("cautions", [])
    if is_read_only(row):
        found |= {"encoder": service.library.encoder_of(row.fingerprint) or "", "read_only": True}
    return found


def _version(row: ProbeRow) -> ProbeVersion:
    measure = HEADLINE[row.kind]
    scores = row.metrics.get("linear") or {}
    interval = scores.get(f"{measure}_interval")
    return ProbeVersion(
        id=row.id,
        version=row.version,
        count=row.count,
        created=_time(row.created),
        measure=measure,
        score=scores.get(measure),
        interval=None if interval is None else (interval[0], interval[1]),
        label_set=row.metrics.get("label_set"),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _from_archive(service: Service, wanted: ProbeRequest, response: Response) -> Job:
    given = given_labels(service.library, service.store, wanted)
    plan, vectors = plan_of_archive(service.library, given, wanted)
    check_labels(plan.labels)
    return _accept(service, plan, response, vectors=vectors)


def _from_files(service: Service, form: Form, response: Response) -> Job:
    plan, cautions = _plan_of_files(service, form, form.fields.get("encoder") or None)
    check_labels(plan.labels)
    return _accept(service, plan, response, form=form, cautions=cautions)


def _plan_of_files(service: Service, form: Form, encoder: str | None) -> tuple[Plan, list[str]]:
    sandbox = service.embedding.sandbox
    return plan_of_files(service.library, service.settings, sandbox, form, encoder=encoder)


def _more_of_archive(service: Service, probe_id: str, wanted: LabelsRequest, response: Response) -> Job:
    newest = _newest(service, probe_id)
    given = given_labels(service.library, service.store, wanted)
    picked = pick(service.library, given.archive, given.labels, allow_leak=wanted.allow_leak)
    check_same_encoder(newest, picked.fingerprint)
    plan = picked.plan(name=newest.name, folds=wanted.folds, label_set=given.label_set)
    return _accept(service, _next(plan, newest), response, vectors=picked.vectors)


def _more_files(service: Service, probe_id: str, form: Form, response: Response) -> Job:
    newest = _newest(service, probe_id)
    plan, cautions = _plan_of_files(service, form, service.library.present(newest.fingerprint))
    return _accept(service, _next(plan, newest), response, form=form, cautions=cautions)


def _newest(service: Service, probe_id: str) -> ProbeRow:
    row = find_probe(service, probe_id)
    if is_read_only(row):
        raise read_only()
    return service.store.versions(row.series)[0]


def _next(plan: Plan, newest: ProbeRow) -> Plan:
    """The plan of a probe's next version.

    Raises:
        ProblemError: 422, the labels are of another kind than the probe's.
    """
    if kind_of(plan.labels) != newest.kind:
        wanted = {"classification": "a text", "multilabel": "a list of texts", "regression": "a number"}[newest.kind]
        raise ProblemError(
            422,
            "other-kind",
            "The labels are of another kind than those of the probe.",
            remedy=f"Give each item {wanted}, or train a new probe.",
        )
    metrics = newest.metrics
    return dataclasses.replace(
        plan, name=newest.name, series=newest.series, seed=metrics["seed"], balanced=metrics.get("balanced")
    )


def _accept(
    service: Service,
    plan: Plan,
    response: Response,
    *,
    vectors: np.ndarray | None = None,
    form: Form | None = None,
    cautions: Sequence[str] | None = None,
) -> Job:
    """Queue the job. `cautions` name files in the sender's words, which are answered and not kept."""
    job_id = new_id()
    draft = form.folder if form is not None else service.settings.temporary(job_id)
    service.training.accept(job_id, draft, dataclasses.asdict(plan), vectors=vectors)
    job = accepted(service.queue_job(job_id, service.training.kind), response)
    return job.model_copy(update={"cautions": list(plan.cautions if cautions is None else cautions)})
