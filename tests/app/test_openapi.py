"""The documented examples run: every operation of the OpenAPI document, and every curl line of docs/service.md."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from tests.app.helpers import png, wait

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"
# What the examples suppose, and what the tests' runs directory has. Files get the contents that the encoder reads.
NAMES = {"galaxies-val": "table", "galaxies": "images", "heads": "mri", "slides": "histology"}
SUCCESS = range(200, 300)


class Place:
    """Real ids, and contents for the named files, in place of the made-up ones of an example."""

    def __init__(self, client: TestClient, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.items = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
        self.probe = self.job()
        assert wait(client, self.probe)["state"] == "succeeded"

    def job(self) -> str:
        """A new job."""
        labels = [{"id": item, "label": "ab"[place % 2]} for place, item in enumerate(self.items)]
        sent = self.client.post("/v1/probes", json={"archive": "table", "labels": labels, "folds": 2})
        assert sent.status_code == 202, sent.text
        return str(sent.json()["id"])

    def waiting_job(self) -> str:
        """A job that has not ended: the last of three, of which one runs at a time."""
        return [self.job() for _ in range(3)][-1]

    def real(self, value: Any) -> Any:
        """An example's value with the names and ids of this place; made-up ids of items are `5555...` or `5f0c...`."""
        if isinstance(value, dict):
            return {key: self.real(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.real(one) for one in value]
        if isinstance(value, str) and value in NAMES:
            return NAMES[value]
        if isinstance(value, str) and (made_up := re.fullmatch(r"([5-8])\1{31}", value)):
            return self.items[int(made_up[1]) - 5]
        return value

    def content(self, name: str, encoder: str) -> tuple[str, bytes]:
        """A file of the kind that `encoder` reads, in place of the example's `name`; equal names, equal contents."""
        if encoder == "images":
            number = ord(name[0])
            return "x.png", png(number, bright=number % 2 == 0)
        path = self.folder / name
        if not path.exists():
            self._write(path)
        return name, path.read_bytes()

    def _write(self, path: Path) -> None:
        from zipfile import ZipFile

        from tests.data.histology import he_picture, write_pyramid
        from tests.data.mri import phantom, write_nifti, write_series

        if path.name.endswith(".nii.gz"):
            write_nifti(path, phantom())
        elif path.suffix == ".zip":
            with ZipFile(path, "w") as packed:
                for one in write_series(path.with_suffix(""), phantom()):
                    packed.write(one, one.name)
        else:
            assert path.suffix == ".svs", f"docs/service.md sends {path.name}: give it a content here"
            picture, _ = he_picture(width=2600, height=1600)
            write_pyramid(path.with_suffix(".tif"), picture, compression="jpeg", quality=50)
            path.with_suffix(".tif").rename(path)

    def send(self, method: str, path: str, *, fields: dict[str, Any], names: list[str], **options: Any) -> Response:
        """A multipart request with files in the place of `names`."""
        encoder = fields.get("encoder", "images")
        files = [("files", self.content(name, encoder)) for name in names]
        found: Response = self.client.request(method, path, data=fields, files=files, **options)
        return found


@pytest.fixture(scope="module")
def place(client: TestClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(client, tmp_path_factory.mktemp("examples"))
    yield made
    for job in client.get("/v1/jobs").json()["jobs"]:
        wait(client, job["id"])


def operations(client: TestClient) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_parameter_and_body_has_an_example(client: TestClient) -> None:
    for path, method, operation in operations(client):
        for parameter in operation.get("parameters", []):
            assert "example" in parameter, f"app/examples.py lacks the parameter {parameter['name']} of {path}"
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            assert "example" in body, f"app/examples.py lacks {kind} of {method} {path}"
            unknown = body["example"].keys() - body["schema"]["properties"].keys()
            assert not unknown, f"the example of {method} {path} has fields that its schema lacks: {unknown}"


def test_every_example_runs(client: TestClient, place: Place) -> None:
    ran = 0
    for path, method, operation in operations(client):
        ids = {"probe_id": place.probe, "job_id": place.waiting_job() if method == "delete" else place.probe}
        values = {p["name"]: ids.get(p["name"], place.real(p["example"])) for p in operation.get("parameters", [])}
        inside = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        address = path.format(**{name: values[name] for name in inside})
        query = {name: value for name, value in values.items() if name not in inside}
        expected = [int(status) for status in operation["responses"] if int(status) in SUCCESS]
        bodies = operation.get("requestBody", {}).get("content", {"": {}})
        for kind, body in bodies.items():
            example = place.real(body.get("example"))
            if kind == "multipart/form-data":
                fields = {name: value for name, value in example.items() if name != "files"}
                answer = place.send(method.upper(), address, fields=fields, names=example["files"], params=query)
            else:
                answer = client.request(method.upper(), address, params=query, json=example if kind else None)
            assert answer.status_code in expected, f"{method} {path} {kind}: {answer.status_code} {answer.text[:500]}"
            if answer.status_code == 202:
                assert wait(client, answer.json()["id"])["state"] == "succeeded"
            ran += 1
    assert ran >= 20


def test_the_page_shows_the_examples(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "-F files=@a.fits -F files=@b.fits" in page and "morphology" in page


def curls() -> list[str]:
    """Every curl command in the shell blocks of the document, its lines joined."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        joined = re.sub(r"\\\n\s*", " ", block)
        # a JSON body goes over several lines
        for command in re.split(r"\n(?=\S)", joined):
            if command.startswith("curl "):
                found.append(re.sub(r"\n\s+", " ", command.strip()))
    return found


def run(command: str, place: Place) -> Response:
    """What curl would send, from the options that the document uses; any other option fails."""
    words = iter(shlex.split(command, comments=True)[1:])
    method, headers, form, body, address = "", {}, [], None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(":")
            headers[name] = value.strip()
        elif word == "-F":
            form.append(next(words).partition("=")[::2])
        elif word == "-d":
            body = next(words)
        elif word == "-o":
            next(words)
        else:
            assert not word.startswith("-") and not address, f"unknown option in: {command}"
            address = word
    assert address.startswith("$URL/"), command
    job = place.waiting_job() if method == "DELETE" else place.probe
    path = address.removeprefix("$URL").replace("$JOB", job).replace("$PROBE", place.probe)
    for made_up, real in NAMES.items():
        path = re.sub(rf"(?<=[/=]){made_up}(?=[/?&]|$)", real, path)
    if form:
        fields = {name: place.real(value) for name, value in form if not value.startswith("@")}
        names = [value.removeprefix("@") for _, value in form if value.startswith("@")]
        return place.send(method or "POST", path, fields=fields, names=names, headers=headers)
    if body is not None:
        ids = dict.fromkeys(re.findall(r'"([0-9a-f]{4}\.\.\.)"', body))
        for number, made_up in enumerate(ids):
            body = body.replace(made_up, place.items[number])
        for made_up, real in NAMES.items():
            body = body.replace(f'"{made_up}"', f'"{real}"')
    answer: Response = place.client.request(
        method or ("POST" if body else "GET"), path, headers=headers, content=body and body.encode()
    )
    return answer


def test_every_curl_line_of_the_document_runs(place: Place) -> None:
    commands = curls()
    assert len(commands) >= 15
    for command in commands:
        answer = run(command, place)
        assert answer.status_code in SUCCESS, f"{command}\n{answer.status_code} {answer.text[:500]}"
        if answer.status_code == 202:
            ended = wait(place.client, answer.json()["id"])
            assert ended["state"] == "succeeded", f"{command}\n{ended}"
