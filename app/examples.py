"""The example request of every operation in the OpenAPI document; the tests send each, and the pages show it as curl.

They suppose an encoder 'galaxies' and an embedding table 'galaxies-val'; ids of items, probes and jobs are made up.
"""

from typing import Any

MULTIPART, JSON = "multipart/form-data", "application/json"
IDS = [digit * 32 for digit in "5678"]
FILES = ["a.fits", "b.fits", "c.fits", "d.fits"]
CLASSES = ["spiral", "spiral", "elliptical", "elliptical"]

PARAMETERS: dict[str, Any] = {
    "encoder_id": "galaxies",
    "name": "galaxies-val",
    "archive": "galaxies-val",
    "probe_id": "0b8c5d2e7f6a41c9b3d8e2f1a0c4b7d6",
    "job_id": "0b8c5d2e7f6a41c9b3d8e2f1a0c4b7d6",
    "limit": 100,
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
    ("post", "/v1/search"): {
        MULTIPART: {"archive": "galaxies-val", "k": 5, "files": FILES[:1]},
        JSON: {"archive": "galaxies-val", "ids": IDS[:1], "k": 5},
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
