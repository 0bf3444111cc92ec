"""Bodies of requests that are either multipart with files or JSON, and how both are told in the OpenAPI document."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import ProblemError, as_error, invalid, nul
from app.settings import Settings
from app.uploads import Form, read_json

M = TypeVar("M", bound=BaseModel)
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, text in (
        (400, "The body is broken or ends too early"),
        (401, "No API key, or one that is not known, revoked or expired"),
        (403, "The key lacks the scope, or another site's page sent the request"),
        (404, "Not found"),
        (408, "The body arrives too slowly"),
        (413, "Larger than a limit"),
        (415, "Neither multipart nor JSON"),
        (421, "The service does not answer under this Host name"),
        (422, "Cannot be done as asked; `remedy` says what to change"),
        (429, "More than the caller may ask for; come back after Retry-After"),
        (503, "Busy, or the database is away; come back after Retry-After"),
        (507, "No space is left for the files"),
    )
}


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


async def json_body(request: Request, model: type[M], settings: Settings) -> M:
    """The JSON body as `model`.

    Raises:
        ProblemError: 413 beyond the limit, 422 where it does not fit.
    """
    body = await read_json(request, settings)
    try:
        found = model.model_validate_json(body)
        if b"\\u0000" in body and holds_nul(found.model_dump()):
            raise nul("A text in the body")
        return found
    except ValidationError as error:
        raise as_error(invalid(error.errors(include_input=False, include_url=False))) from None


def holds_nul(value: Any) -> bool:
    """Whether any text in a value from JSON holds a NUL."""
    if isinstance(value, dict):
        return any(map(holds_nul, value.values()))
    if isinstance(value, list):
        return any(map(holds_nul, value))
    return isinstance(value, str) and "\0" in value


def check_fields(form: Form, known: set[str], *, files: bool = True) -> None:
    """Refuse a form without files, and misspelt fields, which would be ignored otherwise."""
    if form.fields.keys() - known:
        raise ProblemError(
            422,
            "invalid-request",
            "The form has a field that this route does not know.",
            remedy=f"It knows: files, {', '.join(sorted(known))}.",
        )
    if files and not form.uploads:
        raise ProblemError(
            422,
            "no-files",
            "The request holds no file.",
            remedy="Send one or more form fields 'files'; with curl: -F files=@FILE",
        )


def parse_field(form: Form, name: str, kind: Any, default: Any = None) -> Any:
    """A form field that holds JSON (or a bare number), validated as `kind`."""
    text = form.fields.get(name, "")
    if text == "":
        return default
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        issues = [{**issue, "loc": (name, *issue["loc"])} for issue in error.errors(include_input=False)]
        raise as_error(invalid(issues)) from None


def body_of(
    fields: Mapping[str, dict[str, Any]], *, required: tuple[str, ...] = (), model: type[BaseModel] | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads multipart files, and JSON as `model` where one is given."""
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "image, NIfTI, DICOM, FITS, HDF5, slide or tile; a .zip holds the files of a series",
    }
    schema = {"type": "object", "properties": {"files": files, **fields}, "required": ["files", *required]}
    content: dict[str, Any] = {"multipart/form-data": {"schema": schema}}
    if model is not None:
        content["application/json"] = {"schema": _inline(model.model_json_schema())}
    return {"requestBody": {"required": True, "content": content}}


def json_only(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` as JSON with `json_body`."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inline(model.model_json_schema())}},
        }
    }


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its own definitions put in place: '#/$defs' means nothing inside an OpenAPI document."""
    definitions = schema.pop("$defs", {})
    text = json.dumps(schema)
    for name, definition in definitions.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(definition))
    inlined: dict[str, Any] = json.loads(text)
    return inlined


TEXT_FIELDS: dict[str, dict[str, Any]] = {
    "encoder": {"type": "string", "description": "encoder id; may be left out where the service has only one"},
    "region": {
        "type": "string",
        "description": "x,y,width,height of a slide or tile, pixels of the largest level",
        "examples": ["2048,1024,512,512"],
    },
    "mpp": {
        "type": "number",
        "description": "um per pixel of the largest level, where the file does not say",
        "examples": [0.25],
    },
    "keys": {
        "type": "string",
        "description": "JSON list with an entry for each file, in the order of the files: a text or whole number that "
        "its items carry in the answer as `key`; null for none; of a zip also an object with keys by the names in it",
        "examples": ['["A-17", null, {"night 3/a.fits": "A-18"}]'],
    },
}
