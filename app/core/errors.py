"""Errors as RFC 9457 problem+json that name the remedy, without paths, names or internals."""

import errno
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.core import metrics
from app.core.logs import request_id, where
from data_adapters.base import Rejected
from data_adapters.errors import CHECK_FILE as CHECK_FILE
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from lejepa_med.client.wire.common import FileKey, Problem
from lejepa_med.errors import EncoderError, explained

log = logging.getLogger("lejepa_med.app")
MEDIA_TYPE = "application/problem+json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ProblemError(Exception):
    """An answer other than success. `kind` is a stable word that programs can test for."""

    def __init__(self, status: int, kind: str, detail: str, *, remedy: str = "", **extra: Any) -> None:
        super().__init__(kind)
        self.headers: dict[str, str] = extra.pop("headers", {})
        self.problem = problem(status, kind, detail, remedy=remedy, **extra)


def as_error(found: Problem) -> ProblemError:
    """A ProblemError for a ready Problem."""
    error = ProblemError(found.status, "", "")
    error.problem = found
    return error


def nul(where: str) -> ProblemError:
    """422: PostgreSQL stores no text with a NUL, so none is taken whatever the database."""
    return ProblemError(422, "invalid-request", f"{where} holds a NUL character.", remedy="Leave it out.")


def problem(status: int, kind: str, detail: str, *, remedy: str = "", **extra: Any) -> Problem:
    """A Problem with the status's standard title."""
    return Problem(
        type=f"urn:lejepa-med:problem:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        remedy=remedy,
        **extra,
    )


def not_found(what: str, *, remedy: str) -> ProblemError:
    """Return the error 404 for a thing that the client named; the name is not repeated."""
    return ProblemError(404, "not-found", f"There is no such {what}.", remedy=remedy)


@contextmanager
def removed_meanwhile(gone: ProblemError) -> Iterator[None]:
    """Answer with `gone` where files are not there any more: somebody removed the thing after its row was read."""
    try:
        yield
    except FileNotFoundError:
        raise gone from None


def describe(error: Exception) -> Problem:
    """The Problem of any exception; what is unexpected is logged under a reference and not shown."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, EncoderError):
        # Its text is for the operator and may hold the folder's path.
        reference = log_unexpected(error)
        return problem(
            422,
            "encoder-unusable",
            "The encoder cannot be loaded by this installation.",
            remedy="The operator sees the cause in the log of the service, or pretrains again.",
            reference=reference,
        )
    if isinstance(error, BadFileError):
        return problem(422, "bad-file", error.cause, remedy=error.remedy or CHECK_FILE)
    if isinstance(error, MissingExtraError):
        # Import errors name files of the installation.
        return problem(
            500,
            "reader-missing",
            "The service lacks the library that reads this modality.",
            remedy=f"The operator installs it. {error.remedy}",
            reference=log_unexpected(error),
        )
    if isinstance(error, UserError):
        return problem(422, "not-possible", error.cause, remedy=error.remedy)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return problem(
            507,
            "disk-full",
            "The service has no space left to keep the files of this request.",
            remedy="Try again later, with fewer or smaller files; the operator frees space in the data directory.",
            reference=log_unexpected(error),
        )
    return problem(
        500,
        "internal",
        "The service failed while it handled this; nothing is wrong with the request as far as it knows.",
        remedy="Try again; if it stays, give the reference to the operator, who finds it in the log.",
        reference=log_unexpected(error),
    )


def at_start(error: Exception) -> UserError | None:
    """Return why the service cannot start, in words for the operator; None for an unexpected fault."""
    if isinstance(error, ProblemError):
        return UserError(error.problem.detail, remedy=error.problem.remedy)
    return explained(error)


def describe_rejected(found: Rejected) -> Problem:
    """The Problem of a refused file. The remedy of a foreign reader's exception may hold a path, so it stays here."""
    foreign = found.reason.startswith("unreadable (")
    return problem(422, "bad-file", found.reason, remedy=CHECK_FILE if foreign else found.remedy or CHECK_FILE)


def first_bad(
    bad: Problem, index: int, file_index: int, *, name: str | None = None, key: FileKey | None = None
) -> ProblemError:
    """The problem of one item as the problem of the whole request, where every item must be good.

    `name` in the zip and `key` are the client's own words; leave them out of what others read, such as a job.
    """
    kind = bad.type.rsplit(":", 1)[-1]
    which = file_of(file_index, name=name, key=key)
    detail = f"{which} cannot be used: {bad.detail}"
    return ProblemError(
        bad.status, kind, detail, remedy=bad.remedy, index=index, file_index=file_index, name=name, key=key
    )


def file_of(file_index: int, *, name: str | None = None, key: FileKey | None = None) -> str:
    """A file of the request, as a message begins."""
    told = "" if key is None else f", key {key}"
    inside = "" if name is None else f"'{name}' in the file"
    return f"{inside or 'The file'} at position {file_index} of the request (counted from 0{told})"


def log_unexpected(error: BaseException) -> str:
    """Log the type and the code positions under the request's id, or a new one where there is no request."""
    reference = request_id() or uuid.uuid4().hex
    log.error("unexpected %s, reference %s, at %s", type(error).__name__, reference, where(error))
    return reference


def respond(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The HTTP answer for a Problem; its reference is the request's id."""
    metrics.REJECTED.labels(found.type.rpartition(":")[2]).inc()
    found = found.model_copy(update={"reference": found.reference or request_id()})
    content = found.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, status_code=found.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        headers = error.headers if isinstance(error, ProblemError) else None
        return respond(describe(error), headers)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = {404: "GET /openapi.json lists the routes.", 405: "GET /openapi.json lists the methods of each route."}
        remedy = known.get(error.status_code, "")
        phrase = HTTPStatus(error.status_code).phrase
        kind = phrase.lower().replace(" ", "-")
        return respond(problem(error.status_code, kind, f"{phrase}.", remedy=remedy), error.headers)

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(invalid(error.errors()))

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(UserError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def invalid(errors: Any) -> Problem:
    """The Problem of values that do not fit the schema; the values themselves are not repeated."""
    issues = [{"at": _place(e), "issue": str(e["msg"])} for e in errors]
    return problem(
        422,
        "invalid-request",
        "; ".join(f"{issue['at']}: {issue['issue']}" for issue in issues[:10]),
        remedy="Compare the request with the schema in GET /openapi.json.",
        errors=issues[:100],
    )


def _place(error: Any) -> str:
    # The name of a field that the schema does not have is the client's own text. A body that is no object has no place.
    *outer, last = error["loc"] or ("body",)
    unknown = error["type"] == "extra_forbidden"
    return ".".join(str(part) for part in (*outer, "(unknown field)" if unknown else last))
