"""Texts with a NUL, which PostgreSQL does not store, are refused on every way in, with any database."""

import json

import pytest
from fastapi.testclient import TestClient

from tests.app.helpers import files, png

LABELS = [{"id": "5" * 32, "label": "a"}]


@pytest.mark.parametrize("path", ["/v1/probes/a%00b", "/v1/archives/%00", "/v1/jobs?kind=%00", "/v1/jobs/%00"])
def test_in_an_address(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["detail"]) == (422, "The address holds a NUL character.")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/probes", {"archive": "a\0b", "labels": LABELS}),
        ("/v1/probes", {"archive": "table", "labels": [{"id": "\0", "label": "a"}]}),
        ("/v1/probes", {"archive": "table", "labels": [{"id": "5" * 32, "label": "a\0"}]}),
        ("/v1/search", {"archive": "table", "ids": LABELS[0]["id"], "filters": [{"column": "label", "in": ["\0"]}]}),
    ],
)
def test_in_a_body(client: TestClient, path: str, body: dict[str, object]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422 and answer.json()["remedy"], answer.text


def test_a_backslash_before_it_is_text(client: TestClient) -> None:
    answer = client.post("/v1/probes", json={"archive": "no\\u0000such", "labels": LABELS})
    assert answer.status_code in (404, 422) and "NUL" not in answer.text, answer.text


@pytest.mark.parametrize("field", ["encoder", "name", "labels"])
def test_in_a_form(client: TestClient, field: str) -> None:
    fields = {"encoder": "images", "labels": json.dumps(["a", "b"]), field: "a\0b"}
    answer = client.post("/v1/probes", files=files(png(1), png(2)), data=fields)
    assert (answer.status_code, answer.json()["detail"]) == (422, "A form field holds a NUL character.")


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31m", "a\x7f"])
def test_names_and_labels_have_no_control_characters(client: TestClient, text: str) -> None:
    named = client.post("/v1/uploads", files=files(png(1)), data={"modality": "images", "name": text})
    assert named.status_code == 422, named.text
    answer = client.post("/v1/probes", files=files(png(1)), data={"encoder": "images", "labels": json.dumps([text])})
    assert answer.status_code == 422
