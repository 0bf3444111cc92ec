"""What the OpenAPI document tells beside FastAPI's own: bodies, problems, and an example request for each operation.

The tests send each example, and the pages show it as curl. Examples suppose an encoder 'galaxies' and an embedding
table 'galaxies-val'; ids of items, probes, uploads, jobs and keys are made up.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

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


# --- example requests ------------------------------------------------------------------------------------------------

MULTIPART, JSON = "multipart/form-data", "application/json"
IDS = [digit * 32 for digit in "5678"]
FILES = ["a.fits", "b.fits", "c.fits", "d.fits"]
CLASSES = ["spiral", "spiral", "elliptical", "elliptical"]

MADE_UP = "0b8c5d2e7f6a41c9b3d8e2f1a0c4b7d6"
"""Id of a job, and so of the probe, upload or application that it makes."""

PARAMETERS: dict[str, Any] = {
    "encoder_id": "galaxies",
    "name": "galaxies-val",
    "archive": "galaxies-val",
    "probe_id": MADE_UP,
    "upload_id": MADE_UP,
    "application_id": MADE_UP,
    "job_id": MADE_UP,
    "key_id": "5f0c7e1b9a3d4c2e",
    "item_id": "5" * 32,
    "column": "label",
    "method": "pca",
    "set_id": MADE_UP,
    "quality_id": MADE_UP,
    "report": "outliers",
    "points": 500,
    "path": "wing",
    "probe": MADE_UP,
    "If-Match": "*",
    "state": "succeeded",
    "kind": "train-probe",
    "since": "2026-11-01T00:00:00Z",
    "until": "2026-12-01T00:00:00Z",
    "before": 1000,
    "limit": 100,
    "wait": 30,
    "offset": 0,
}

BODIES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("post", "/v1/embeddings"): {MULTIPART: {"encoder": "galaxies", "files": FILES[:2]}},
    ("post", "/v1/inspect"): {MULTIPART: {"encoder": "galaxies", "archive": "galaxies-val", "files": FILES[:1]}},
    ("post", "/v1/probes"): {
        MULTIPART: {
            "encoder": "galaxies",
            "name": "morphology",
            "files": FILES,
            "labels": '["spiral", "spiral", "elliptical", "elliptical"]',
            "groups": '["field 1", "field 2", "field 3", "field 4"]',
        },
        JSON: {
            "name": "morphology",
            "archive": "galaxies-val",
            "labels": [{"id": item, "label": label} for item, label in zip(IDS, CLASSES, strict=True)],
        },
    },
    ("post", "/v1/probes/{probe_id}/labels"): {
        MULTIPART: {"files": FILES[:2], "labels": '["spiral", "spiral"]'},
        JSON: {"archive": "galaxies-val", "labels": [{"id": item, "label": "spiral"} for item in IDS[:2]]},
    },
    ("post", "/v1/probes/{probe_id}/predictions"): {
        MULTIPART: {"files": FILES[:1]},
        JSON: {"archive": "galaxies-val", "ids": IDS[:2]},
    },
    ("post", "/v1/probes/{probe_id}/applications"): {JSON: {"archive": "galaxies-val"}},
    ("post", "/v1/archives/{name}/checks"): {JSON: {"columns": ["scanner"]}},
    ("post", "/v1/archives/{name}/outliers"): {JSON: {"share": 0.01}},
    ("post", "/v1/uploads"): {
        MULTIPART: {"encoder": "galaxies", "name": "night 3", "files": FILES, "catalog": "labels.csv"},
    },
    ("post", "/v1/archives"): {JSON: {"name": "night-3", "encoder": "galaxies", "upload": MADE_UP}},
    ("post", "/v1/label-sets"): {
        JSON: {"name": "morphology, first round", "archive": "galaxies-val", "classes": ["spiral", "elliptical"]}
    },
    ("patch", "/v1/label-sets/{set_id}"): {
        JSON: {"labels": [{"id": IDS[0], "label": "spiral"}, {"id": IDS[1], "label": "elliptical"}]}
    },
    ("post", "/v1/label-sets/{set_id}/csv"): {JSON: {"csv": f"id,label\n{IDS[2]},spiral\n", "replace": False}},
    ("post", "/v1/keys"): {JSON: {"name": "pacs-gateway", "scopes": ["embed"], "expires_days": 365}},
    ("post", "/v1/search"): {
        MULTIPART: {"archive": "galaxies-val", "k": 5, "files": FILES[:1]},
        JSON: {
            "archive": "galaxies-val",
            "ids": IDS[:1],
            "k": 5,
            "filters": [{"column": "label", "not_in": ["merger"]}],
        },
    },
}


def add_examples(document: dict[str, Any]) -> None:
    """Write the examples into an OpenAPI document, in place. What has none is left without; a test finds it."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in PARAMETERS:
                    parameter["example"] = PARAMETERS[parameter["name"]]
            content = operation.get("requestBody", {}).get("content", {})
            for kind, example in BODIES.get((method, path), {}).items():
                content[kind]["example"] = example
