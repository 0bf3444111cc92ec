"""The documented examples run: every operation of the OpenAPI document, and every curl line of the documents."""

import csv
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy import delete

from app.api.keys import make_key
from app.api.service import Service, new_id
from app.core.settings import Settings
from app.store import AuditRow, KeyRow
from tests.app.helpers import add_dead_job, png, wait
from tests.data.histology import he_picture, write_pyramid, write_tiles
from tests.data.mri import phantom, write_nifti, write_series

DOCUMENTS = [
    Path(__file__).parents[3] / "docs" / f"{name}.md" for name in ("service", "search", "security", "durability")
]
# What the examples suppose, out of the tests' runs directory. Files get the contents that the encoder reads.
RUNS = {"galaxies": "images", "galaxies-val": "table", "heads": "mri", "slides": "histology"}
ID_NAMES = ("probe_id", "upload_id", "application_id", "job_id", "item_id", "set_id", "quality_id")
VARIABLES = {name.upper().removesuffix("_ID"): name for name in ID_NAMES}
PARTICIPANTS = "participant_id\tsex\nsub-01\tF\n"
MULTIPART = "multipart/form-data"
SUCCESS = range(200, 300)


class Place:
    """Real ids, and contents for the named files, in place of the made-up ones of an example."""

    def __init__(self, client: TestClient, folder: Path, *, key: str) -> None:
        self.client, self.folder, self.key = client, folder, key
        self.service: Service = client.app.state.service  # type: ignore[attr-defined]
        self.items = [item["id"] for item in client.get("/v1/archives/galaxies-val/ids").json()["items"]]
        labels = [{"id": item, "label": "ab"[place % 2]} for place, item in enumerate(self.items)]
        self.probe = self.made(
            client.post("/v1/probes", json={"archive": "galaxies-val", "labels": labels, "folds": 2})
        )
        self.application = self.new_application()
        self.upload = self.new_upload()
        self.quality = self.new_quality()

    def made(self, answer: Response) -> str:
        """The id of a job that was accepted, once it succeeded."""
        assert answer.status_code == 202, answer.text
        ended = wait(self.client, answer.json()["id"], seconds=60)
        assert ended["state"] == "succeeded", ended
        return str(ended["id"])

    def new_upload(self) -> str:
        return self.made(self.send("POST", "/v1/uploads", {"encoder": "galaxies"}, {"files": ["a.fits", "b.fits"]}))

    def new_application(self) -> str:
        body = {"archive": "galaxies-val"}
        return self.made(self.client.post(f"/v1/probes/{self.probe}/applications", json=body))

    def new_quality(self) -> str:
        return self.made(self.client.post("/v1/archives/galaxies-val/outliers", json={}))

    def new_label_set(self) -> str:
        labels = "".join(f"{item},{'ab'[place % 2]}\n" for place, item in enumerate(self.items))
        made = self.client.post("/v1/label-sets", json={"name": "n", "archive": "galaxies-val"}).json()["id"]
        body = {"csv": f"id,label\n{labels}"}
        answer = self.client.post(f"/v1/label-sets/{made}/csv", json=body, headers={"If-Match": "*"})
        assert answer.status_code == 200, answer.text
        return str(made)

    def dead_job(self) -> str:
        """A job whose tries are used up; the only kind that can be queued again, and that cannot end meanwhile."""
        job, archiving = new_id(), self.service.archiving
        archiving.accept_plan(job, archiving.plan(f"again-{job[:8]}", "heads", folder="wing/east"))
        add_dead_job(self.service.store, job, archiving.kind)
        return job

    def real_id(self, name: str, *, method: str, path: str) -> str | None:
        """What stands for an id in an address; what a request would remove is made for it."""
        removes = method == "delete"
        if name == "job_id":
            return self.dead_job() if removes or path.endswith("/retry") else self.probe
        if name == "upload_id":
            return self.new_upload() if removes else self.upload
        if name == "application_id" and removes:
            return self.new_application()
        if name == "quality_id" and removes:
            return self.new_quality()
        if name == "key_id":
            return make_key(self.service.store, name="gone", scopes=["embed"])[0].id
        if name == "name" and removes:
            body = {"name": "gone", "encoder": "galaxies", "upload": self.upload}
            self.made(self.client.post("/v1/archives", json=body))
            return "gone"
        if name == "set_id":
            return self.new_label_set()
        known = {
            "probe": self.probe,
            "probe_id": self.probe,
            "application_id": self.application,
            "item_id": self.items[0],
            "quality_id": self.quality,
        }
        return known.get(name)

    def real(self, value: Any) -> Any:
        """An example's value with the ids of this place; made-up ones are `5555...`, and an upload's `0b8c...`."""
        if isinstance(value, dict):
            return {key: self.real(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.real(one) for one in value]
        if isinstance(value, str):
            value = re.sub(r"([5-8])\1{31}", lambda made_up: self.items[int(made_up[1]) - 5], value)
        return self.upload if isinstance(value, str) and re.fullmatch(r"0b8c[0-9a-f]{28}", value) else value

    def send(
        self, method: str, path: str, fields: dict[str, Any], names: dict[str, list[str]], **options: Any
    ) -> Response:
        """A multipart request with files in the place of `names`, which are by form field."""
        encoder = fields.get("encoder", "galaxies")
        files = [(field, self._content(name, encoder, names)) for field in names for name in names[field]]
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
        found: Response = self.client.request(method, path, data=texts, files=files, **options)
        return found

    def _content(self, name: str, encoder: str, names: dict[str, list[str]]) -> tuple[str, bytes]:
        """A file of the kind that `encoder` reads, in place of the example's `name`; equal names, equal contents."""
        if name.endswith(".csv"):
            rows = io.StringIO()
            writer = csv.writer(rows)
            writer.writerows([("path", "label"), *((self._sent(one, encoder), "ab") for one in names["files"])])
            return name, rows.getvalue().encode()
        if encoder == "galaxies":
            number = ord(name[0])
            return self._sent(name, encoder), png(number, bright=number % 2 == 0)
        path = self.folder / name
        if not path.exists():
            write(path)
        return name, path.read_bytes()

    def _sent(self, name: str, encoder: str) -> str:
        return f"{Path(name).stem}.png" if encoder == "galaxies" else name


def write(path: Path) -> None:
    """A volume, series or slide, by the file's suffix."""
    if path.name.endswith(".nii.gz"):
        write_nifti(path, phantom())
    elif path.name == "ds.zip":
        with ZipFile(path, "w") as packed:
            write(head := path.with_name("head.nii.gz"))
            packed.write(head, "ds/sub-01/anat/sub-01_T1w.nii.gz")
            packed.writestr("ds/participants.tsv", PARTICIPANTS)
    elif path.suffix == ".png":
        write_tiles(path.parent / "tiles", slides=["s"], per_slide=1)[0].rename(path)
    elif path.suffix == ".zip":
        with ZipFile(path, "w") as packed:
            for one in write_series(path.with_suffix(""), phantom()):
                packed.write(one, one.name)
    else:
        assert path.suffix == ".svs", f"a document sends {path.name}: give it a content here"
        picture, _ = he_picture(width=2600, height=1600)
        write_pyramid(path.with_suffix(".tif"), picture, compression="jpeg", quality=50)
        path.with_suffix(".tif").rename(path)


@pytest.fixture(scope="module")
def place(
    client: TestClient, runs: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """The service while it asks for keys and has what the examples name; all of it goes at the end."""
    for name, source in RUNS.items():
        shutil.copytree(runs / source, runs / name, copy_function=os.link)
    names = pq.read_table(runs / "table", columns=["id"]).column("id")
    told = pa.table({"id": names, "scanner": [f"s{row % 2}" for row in range(len(names))]})
    pq.write_table(told, runs / "galaxies-val" / "_about" / "context.parquet")
    (runs / "galaxies" / "report.html").write_text("<!doctype html><title>report</title>")
    assert settings.archives_dir is not None
    east = settings.archives_dir / "wing" / "east"
    is_new = not east.exists()
    east.mkdir(parents=True, exist_ok=True)
    write(east / "head.nii.gz")
    dataset = settings.archives_dir / "ds"
    (dataset / "sub-01").mkdir(parents=True)
    write(dataset / "sub-01" / "sub-01_T1w.nii.gz")
    (dataset / "participants.tsv").write_text(PARTICIPANTS)
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    before = {row.name for row in service.store.archives()}
    _, key = make_key(service.store, name="examples", scopes=["admin"])
    service.keys.refresh(at_once=True)
    try:
        assert client.get("/v1/audit").status_code == 401
        own = TestClient(client.app, headers={"Authorization": f"Bearer {key}"})
        yield Place(own, tmp_path_factory.mktemp("examples"), key=key)
        for job in own.get("/v1/jobs").json()["jobs"]:
            wait(own, job["id"])
        for name in {row.name for row in service.store.archives()} - before:
            assert own.delete(f"/v1/archives/{name}").status_code == 204
    finally:
        with service.store._write() as session:
            for table in (KeyRow, AuditRow):
                session.execute(delete(table))
        service.keys.refresh(at_once=True)
        (east / "head.nii.gz").unlink()
        shutil.rmtree(dataset)
        if is_new:
            shutil.rmtree(east)
        for name in RUNS:
            shutil.rmtree(runs / name)


def operations(client: TestClient) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_parameter_and_body_has_an_example(place: Place) -> None:
    for path, method, operation in operations(place.client):
        for parameter in operation.get("parameters", []):
            assert "example" in parameter, f"app/api/openapi.py lacks the parameter {parameter['name']} of {path}"
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            assert "example" in body, f"app/api/openapi.py lacks {kind} of {method} {path}"
            unknown = body["example"].keys() - body["schema"]["properties"].keys()
            assert not unknown, f"the example of {method} {path} has fields that its schema lacks: {unknown}"


def test_every_example_runs(place: Place) -> None:
    ran = 0
    for path, method, operation in operations(place.client):
        values = {
            p["name"]: place.real_id(p["name"], method=method, path=path) or p["example"]
            for p in operation.get("parameters", [])
        }
        inside = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        headers = {p["name"]: values.pop(p["name"]) for p in operation.get("parameters", []) if p["in"] == "header"}
        address = path.format(**{name: values[name] for name in inside})
        query = {name: value for name, value in values.items() if name not in inside}
        expected = [int(status) for status in operation["responses"] if int(status) in SUCCESS]
        bodies = operation.get("requestBody", {}).get("content", {"": {}})
        for kind, body in bodies.items():
            example = place.real(body.get("example"))
            if kind == MULTIPART:
                fields = {name: value for name, value in example.items() if name not in ("files", "catalog")}
                names = {"files": example["files"]}
                names |= {"catalog": [example["catalog"]]} if "catalog" in example else {}
                answer = place.send(method, address, fields, names, params=query)
            else:
                body_of = example if kind else None
                answer = place.client.request(method, address, params=query, json=body_of, headers=headers)
            assert answer.status_code in expected, f"{method} {path} {kind}: {answer.status_code} {answer.text[:500]}"
            if answer.status_code == 202:
                place.made(answer)
            ran += 1
    assert ran >= 39


def test_the_examples_are_in_the_audit_trail(place: Place) -> None:
    lines = place.client.get("/v1/audit", params={"limit": 1000}).json()["lines"]
    done = {line["action"] for line in lines if line["key_id"] == place.key.split("_")[1]}
    assert {"POST /v1/keys", "POST /v1/uploads", "POST /v1/jobs/{job_id}/retry"} <= done


def test_every_json_body_is_limited(place: Place) -> None:
    body = b'{"name": "%s"}' % (b"x" * place.service.settings.max_json_bytes)
    limited = 0
    for path, method, operation in operations(place.client):
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            headers = {"Content-Type": "application/json", "If-Match": "*"}
            answer = place.client.request(method, path, content=body, headers=headers)
            assert answer.status_code == 413, f"{method} {path}: {answer.status_code}"
            assert "413" in operation["responses"], f"{method} {path} does not tell it"
            limited += 1
    assert limited >= 7


def test_every_setting_is_in_the_document() -> None:
    told = set(re.findall(r"`LEJEPA_(\w+)`", DOCUMENTS[0].read_text(encoding="utf-8").partition("\n## Settings")[2]))
    assert {name.upper() for name in Settings.model_fields} == told


def curls() -> list[str]:
    """Every curl command in the shell blocks of the documents, its lines joined."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            joined = re.sub(r"\\\n\s*", " ", block)
            # a JSON body goes over several lines
            for command in re.split(r"\n(?=\S)", joined):
                if command.startswith("curl "):
                    found.append(re.sub(r"\n\s+", " ", command.strip()))
    return found


def run(command: str, place: Place) -> Response:
    """What curl would send, from the options that the documents use; any other option fails."""
    words = iter(shlex.split(command, comments=True)[1:])
    method, headers, form, body, address = "", {}, [], None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(":")
            headers[name] = value.strip().replace("$KEY", place.key)
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
    path = address.removeprefix("$URL")
    for variable, name in (*VARIABLES.items(), ("KEY_ID", "key_id")):
        if re.search(rf"\${variable}\b", path):
            real = place.real_id(name, method=method.lower(), path=path)
            path = re.sub(rf"\${variable}\b", str(real), path)
    if form:
        fields = {name: value for name, value in form if not value.startswith("@")}
        names: dict[str, list[str]] = {}
        for name, value in form:
            if value.startswith("@"):
                names.setdefault(name, []).append(value.removeprefix("@"))
        return place.send(method or "POST", path, fields, names, headers=headers)
    if body is not None:
        body = body.replace('"0b8c..."', f'"{place.upload}"')
        if "0.12, -0.03" in body:
            found = place.send("POST", "/v1/embeddings", {"encoder": "galaxies"}, {"files": ["a.fits"]}).json()
            body = body.replace("[0.12, -0.03, ...]", json.dumps(found["items"][0]["vector"]))
            body = body.replace('"..."', json.dumps(found["fingerprint"]))
        body = body.replace("$SET", place.new_label_set() if "$SET" in body else "")
        ids = dict.fromkeys(re.findall(r"[0-9a-f]{4}\.\.\.", body))
        for number, made_up in enumerate(ids):
            body = body.replace(made_up, place.items[number])
    answer: Response = place.client.request(
        method or ("POST" if body else "GET"), path, headers=headers, content=body and body.encode()
    )
    return answer


def test_every_curl_line_of_the_documents_runs(place: Place) -> None:
    commands = curls()
    assert len(commands) >= 50
    for command in commands:
        answer = run(command, place)
        assert answer.status_code in SUCCESS, f"{command}\n{answer.status_code} {answer.text[:500]}"
        if answer.status_code == 202:
            made = place.made(answer)
            if "$URL/v1/uploads" in command:
                place.upload = made  # which the following lines embed
                embedding = place.client.get(f"/v1/uploads/{made}").json()["embedding"]
                assert embedding is None or wait(place.client, embedding, seconds=60)["state"] == "succeeded"
