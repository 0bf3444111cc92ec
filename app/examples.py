"""The example request of every operation in the OpenAPI document; the tests send each, and the pages show it as curl.

They suppose an encoder 'galaxies' and an embedding table 'galaxies-val'; ids of items, probes, uploads, jobs and keys
are made up.
"""

from typing import Any

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
    ("post", "/v1/uploads"): {
        MULTIPART: {"encoder": "galaxies", "name": "night 3", "files": FILES, "catalog": "labels.csv"},
    },
    ("post", "/v1/archives"): {JSON: {"name": "night-3", "encoder": "galaxies", "upload": MADE_UP}},
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


def fill(document: dict[str, Any]) -> None:
    """Write the examples into an OpenAPI document, in place. What has none is left without; a test finds it."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in PARAMETERS:
                    parameter["example"] = PARAMETERS[parameter["name"]]
            content = operation.get("requestBody", {}).get("content", {})
            for kind, example in BODIES.get((method, path), {}).items():
                content[kind]["example"] = example
