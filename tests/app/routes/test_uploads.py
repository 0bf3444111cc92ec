"""Uploads: received, imported by a job, listed by position and never by name, embedded, removed."""

import hashlib
import io
import json
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.jobs.import_upload import seal, unseal
from data_adapters.identity import salt
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.models.folder import load_encoder
from tests.app.helpers import eventually, files, png, wait

IMAGES = {"modality": "images"}
CATALOG = b"""path,label,group,mpp,patient
Doe_1.png,bright,Doe,0.5,Jane
Doe_2.png,dark,Doe,,Jane
inside/Doe_3.png,bright,Roe,,
Mustermann.png,dark,,,
"""


def zipped(**entries: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in entries.items():
            target.writestr(f"inside/{name}.png", content)
    return packed.getvalue()


def send(client: TestClient, parts: list[Any], **fields: str) -> dict[str, Any]:
    answer = client.post("/v1/uploads", files=parts, data=fields)
    assert answer.status_code == 202, answer.text
    job = wait(client, answer.json()["id"], seconds=60)
    assert (job["kind"], job["state"]) == ("import-upload", "succeeded"), job
    assert job["result"] == f"/v1/uploads/{job['id']}"
    found: dict[str, Any] = client.get(job["result"]).json()
    return found


def bomb() -> bytes:
    """The head of a PNG that claims 1.2 GB."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.fixture(scope="module")
def contents() -> list[tuple[str, bytes]]:
    """Two good pictures, one cut off, an equal one, a zip of a good and a bad one, a broken zip and a bomb."""
    return [
        ("Doe_1.png", png(1)),
        ("Doe_2.png", png(2, bright=False)),
        ("Roe_cut.png", png(3)[:700]),
        ("Roe_again.png", png(1)),
        ("both.zip", zipped(Doe_3=png(4), Roe_4=b"no picture")),
        ("broken.zip", b"PK no zip"),
        ("Doe_bomb.png", bomb()),
    ]


@pytest.fixture(scope="module")
def upload(client: TestClient, contents: list[tuple[str, bytes]]) -> dict[str, Any]:
    parts = [("files", content) for content in contents]
    return send(
        client,
        [*parts, ("catalog", ("Doe.csv", CATALOG))],
        name="ward 3",
        encoder="images",
        embed="true",
        archive="sent-heads",
    )


def test_upload_tells_what_was_read_and_what_was_refused(
    client: TestClient, upload: dict[str, Any], contents: list[tuple[str, bytes]]
) -> None:
    assert (upload["name"], upload["modality"], upload["state"]) == ("ward 3", "images", "ready")
    assert (upload["files"], upload["bytes"]) == (7, sum(len(content) for _, content in contents))
    assert upload["sha256"] == hashlib.sha256(b"".join(content for _, content in contents)).hexdigest()
    assert (upload["items"], upload["labels"]) == (4, {"bright": 2, "dark": 1})
    assert upload["groups"] == 3, "two of the group Doe, one of Roe, one of its own"
    refused = {(one["file_index"], one.get("entry")) for one in upload["refused_items"]}
    assert (refused, upload["refused"]) == ({(2, None), (4, 1), (5, None), (6, None)}, 4)
    assert all(one["reason"] and one["remedy"] for one in upload["refused_items"])
    assert sum(one["count"] for one in upload["reasons"]) == 4
    assert upload["duplicates"] == 1
    assert upload["catalog_unused"] == 1
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()
    assert [(one["file_index"], one.get("entry"), one.get("label")) for one in items["items"]] == [
        (0, None, "bright"),
        (1, None, "dark"),
        (3, None, None),
        (4, 0, "bright"),
    ]
    assert items["items"][0]["group"] == items["items"][1]["group"] != items["items"][3]["group"]
    assert upload["duplicate_items"] == [{"id": items["items"][2]["id"], "same_as": items["items"][0]["id"]}]
    page = client.get(f"/v1/uploads/{upload['id']}/items?offset=2&limit=1").json()
    assert (page["items"], page["next"]) == (items["items"][2:3], f"/v1/uploads/{upload['id']}/items?offset=3&limit=1")
    listed = client.get("/v1/uploads").json()["uploads"]
    assert [one["sha256"] for one in listed if one["id"] == upload["id"]] == [upload["sha256"]]


def test_names_are_readable_nowhere_and_those_in_zips_told_to_the_sender(
    client: TestClient, upload: dict[str, Any], settings: Settings
) -> None:
    """They lie sealed with the upload, and go with it; names of files that came by themselves are not kept at all."""
    job = client.get(f"/v1/jobs/{upload['id']}")
    text = job.text + client.get("/v1/uploads").text + client.get("/v1/archives").text
    wait(client, upload["embedding"])
    eventually(lambda: not any(client.get(f"/v1/jobs?state={state}").json()["jobs"] for state in ("queued", "running")))
    eventually(lambda: not list((settings.data / "jobs").iterdir()))
    stored = [path for path in settings.data.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert any(upload["id"] in str(path) for path in stored)
    assert str(settings.data) not in text
    sealed = (settings.data / "uploads" / upload["id"] / "names.sealed").read_text(encoding="ascii")
    changed = sealed[:60] + ("A" if sealed[60] != "A" else "B") + sealed[61:]
    assert unseal(sealed, b"another salt") is None and unseal(changed, salt()) is None
    assert unseal(seal("Doe ä", b"one"), b"one") == "Doe ä"
    told = client.get(f"/v1/uploads/{upload['id']}/items").text + str(upload)
    assert "inside/Doe_3.png" in told and "inside/Roe_4.png" in told
    for word in ("Doe", "Roe", "Jane", "Mustermann"):
        assert word not in text
        assert word not in told.replace("inside/Doe_3.png", "").replace("inside/Roe_4.png", "")
        for path in stored:
            assert word not in str(path.relative_to(settings.data))
            assert word.encode() not in path.read_bytes(), path
    eventually(lambda: not (settings.data / "jobs" / upload["id"]).exists())


def test_embedding_follows_the_import(
    client: TestClient, upload: dict[str, Any], settings: Settings, runs: Path, tmp_path: Path
) -> None:
    job = wait(client, upload["embedding"], seconds=60)
    assert (job["kind"], job["state"], job["result"]) == ("embed-archive", "succeeded", "/v1/archives/sent-heads"), job
    archive = client.get(job["result"]).json()
    assert (archive["count"], archive["failed"], archive["upload"]) == (4, 0, upload["id"])
    assert archive["encoder"] == "images"
    table = EmbeddingTable.open(settings.data / "archives" / upload["embedding"])
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
    assert (table.ids, table.groups) == ([one["id"] for one in items], [one["group"] for one in items])
    (tmp_path / "1.png").write_bytes(png(1))
    adapter = (encoder := load_encoder(runs / "images")).adapter
    record = next(iter(adapter.scan(tmp_path / "1.png")))
    expected = encoder.embed([adapter.prepare(record)])  # type: ignore[arg-type]
    assert table.vectors[0] == pytest.approx(expected[0], abs=1e-5)


def test_an_upload_in_another_reading_is_scanned_again_for_the_encoder(client: TestClient, settings: Settings) -> None:
    """The modality's defaults differ from the encoder's options; ids must stay those of the upload."""
    upload = send(client, files(png(7), png(8)), modality="images")
    assert upload["name"] == "images"
    answer = client.post("/v1/archives", json={"name": "again", "upload": upload["id"], "encoder": "images"})
    assert answer.status_code == 202, answer.text
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code in (204, 409), "409 while the job reads it"
    wait(client, answer.json()["id"], seconds=60)
    ids = client.get("/v1/archives/again/ids").json()["items"]
    if client.get(f"/v1/uploads/{upload['id']}").status_code == 200:
        items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
        assert [(one["id"], one["group"]) for one in items] == [(one["id"], one["group"]) for one in ids]
        assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert client.get(f"/v1/uploads/{upload['id']}").status_code == 404
    assert not (settings.data / "uploads" / upload["id"]).exists()
    assert not list((settings.data / "tmp").glob("*.removed"))
    other = client.post("/v1/archives", json={"name": "other", "upload": upload["id"], "encoder": "images"})
    assert other.status_code == 404


def test_upload_without_anything_readable_fails_and_leaves_nothing(client: TestClient, settings: Settings) -> None:
    answer = client.post("/v1/uploads", files=files(b"bad", b""), data={"encoder": "images"})
    job = wait(client, answer.json()["id"], seconds=60)
    assert job["state"] == "failed"
    assert job["error"]["type"] == "urn:lejepa-med:problem:nothing-readable"
    assert client.get(f"/v1/uploads/{job['id']}").status_code == 404
    eventually(lambda: not list(settings.data.glob(f"*/{job['id']}")))


def test_a_catalogue_with_columns_of_its_own(client: TestClient) -> None:
    parts = [*files(png(1), name="1.png"), *files(png(2), name="2.png"), *files(png(3), name="3.png")]
    rows = ["path,Patient,age,label", "1.png,p,40,x", "2.png,p,41,x", "3.png,q,41,x"]
    catalog = ("catalog", ("c.csv", "\n".join(rows).encode()))
    found = send(client, [*parts, catalog], modality="images", group_column="patient", label_column="age")
    assert (found["groups"], found["labels"], found["cautions"]) == (2, {"40": 1, "41": 2}, [])
    found = send(client, [*parts, catalog], encoder="images", embed="true", archive="ungrouped")
    (caution,) = found["cautions"]
    assert found["groups"] == 3 and caution == (
        "In the catalogue, the column 'Patient' looks like the group (patient, slide, field), and is not used: give "
        "group_column=Patient to keep its equal values on one side of every split"
    )
    assert wait(client, found["embedding"])["state"] == "succeeded"
    assert client.get("/v1/archives/ungrouped").json()["cautions"] == [caution]
    ids = [one["id"] for one in client.get("/v1/archives/ungrouped/ids").json()["items"]]
    labels = [{"id": name, "label": float(place)} for place, name in enumerate(ids)]
    job = client.post("/v1/probes", json={"archive": "ungrouped", "labels": labels}).json()
    assert job["cautions"] == [caution] and wait(client, job["id"])["state"] == "succeeded"
    assert client.get(f"/v1/probes/{job['id']}").json()["cautions"] == [caution]
    assert client.delete("/v1/archives/ungrouped").status_code == 204
    data = {"modality": "images", "group_column": "Doe"}
    answer = client.post("/v1/uploads", files=[*parts, catalog], data=data)
    assert answer.status_code == 422 and "no column of the name that group_column gives" in answer.json()["detail"]
    assert "Doe" not in answer.text


def test_a_catalogue_as_a_lab_computer_writes_it(client: TestClient) -> None:
    """UTF-16, semicolons, whole Windows paths, NFC for names that come in NFD, NA and 1.0; rows are told by number."""
    names = [unicodedata.normalize("NFD", f"Müller {number}.png") for number in range(5)]
    cells = ["1;a;0,5", "1.0;a;0,25", "NA;b;", "2;NA;1", ";;"]
    rows = [f"D:\\Ward\\{unicodedata.normalize('NFC', name)};{cell}" for name, cell in zip(names, cells, strict=True)]
    lines = ["Path;Label;Group;mpp", "", *rows[:4], "D:\\Ward\\gone.png;1;a;1", "", "D:\\Ward\\lost.png;1;a;1"]
    parts: list[Any] = [("files", (name, png(number))) for number, name in enumerate(names)]
    catalog = "\r\n".join(lines).encode("utf-16")
    found = send(client, [*parts, ("catalog", ("c.csv", catalog))], modality="images")
    assert (found["items"], found["labels"], found["groups"]) == (5, {"1": 2, "2": 1}, 4)
    assert (found["catalog_unused"], found["catalog_unused_rows"]) == (2, [7, 9])
    assert found["catalog_missing"] == {"label": {"NA": 1}, "group": {"NA": 1}}
    assert found["catalog_without_row"] == 1


def test_folders_that_a_zip_or_browser_adds_or_leaves_out(client: TestClient) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for number in (1, 2):
            target.writestr(f"archive/ward {number}/same.png", png(number))
    parts: list[Any] = [
        ("files", ("a.zip", packed.getvalue())),
        ("files", ("x.png", png(3))),
        ("files", ("y.png", png(4))),
    ]
    rows = ["ward 1/same.png,one", "ward 2/same.png,two", "/home/me/x.png,three", "a/y.png,four", "b/y.png,five"]
    catalog = "\n".join(["path,label", *rows]).encode()
    found = send(client, [*parts, ("catalog", ("c.csv", catalog))], modality="images")
    assert found["labels"] == {"one": 1, "two": 1, "three": 1}
    assert found["catalog_unused_rows"] == [5, 6], "two rows could be y.png, so neither is"


@pytest.mark.parametrize(
    ("catalog", "cause"),
    [
        ("path,label\nDoe.png,a\nMüller.png,b\n".encode("latin-1"), "row 3 is not UTF-8"),
        (b"path,label\nDoe.png,a,b\n", "row 2 has 3 cells, the header has 2"),
        (b"path,label\nDoe.png,a\n./Doe.png,b\n", "Rows 2 and 3 are two different rows"),
        (b"PK\x03\x04", "an Excel workbook"),
        (b'path,mpp\nDoe.png,"1,234"\n', "'mpp' (row 2): a decimal comma or thousands?"),
        (b"Doe,label\nDoe.png,a\n", "no column 'path' or 'participant_id'."),
    ],
)
def test_a_refused_catalogue_says_why_without_names(client: TestClient, catalog: bytes, cause: str) -> None:
    parts: list[Any] = [*files(png(), name="Doe.png"), ("catalog", ("c.csv", catalog))]
    answer = client.post("/v1/uploads", files=parts, data={"modality": "images"})
    assert answer.status_code == 422 and answer.json()["type"].endswith("bad-catalog")
    assert cause in answer.json()["detail"] and answer.json()["remedy"]
    assert "Doe" not in answer.text and "Müller" not in answer.text


@pytest.mark.parametrize(
    ("fields", "catalog", "status", "kind"),
    [
        ({"modality": "os:system"}, b"", 422, "invalid-request"),
        ({"modality": "./evil.py:Class"}, b"", 422, "invalid-request"),
        ({"encoder": "none"}, b"", 404, "not-found"),
        ({"encoder": "images", "modality": "images"}, b"", 422, "invalid-request"),
        ({"encoder": "images", "embed": "true", "name": "not an address"}, b"", 422, "invalid-request"),
        ({"encoder": "images", "embed": "true", "name": "table"}, b"", 409, "name-taken"),
        ({"encoder": "images", "color": "red"}, b"", 422, "invalid-request"),
        ({"encoder": "images"}, b"file,label\nDoe.png,a\n", 422, "bad-catalog"),
        ({"encoder": "images"}, b"path,label\nDoe.png,a\nDoe.png,b\n", 422, "bad-catalog"),
        ({"encoder": "images"}, b"\xff\xfe\x00", 422, "bad-catalog"),
    ],
)
def test_refused_uploads(
    client: TestClient, settings: Settings, fields: dict[str, str], catalog: bytes, status: int, kind: str
) -> None:
    parts: list[Any] = files(png(), name="Doe.png")
    if catalog:
        parts.append(("catalog", ("c.csv", catalog)))
    before = len(client.get("/v1/jobs?limit=1000").json()["jobs"])
    answer = client.post("/v1/uploads", files=parts, data=fields)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:lejepa-med:problem:{kind}"), answer.text
    assert answer.json()["remedy"]
    for word in ("Doe", "evil", str(settings.data)):
        assert word not in answer.text
    assert len(client.get("/v1/jobs?limit=1000").json()["jobs"]) == before
    assert not list((settings.data / "tmp").glob("*"))


def test_only_this_route_takes_a_catalogue(client: TestClient) -> None:
    parts: list[Any] = [*files(png()), ("catalog", ("c.csv", CATALOG))]
    assert client.post("/v1/embeddings", files=parts, data={"encoder": "images"}).status_code == 422


def test_uploads_expire_where_the_operator_says_so(
    runs: Path, tmp_path: Path, client: TestClient, upload: dict[str, Any], settings: Settings
) -> None:
    from app.api.service import Service
    from app.jobs.import_upload import ImportUpload

    service: Service = client.app.state.service  # type: ignore[attr-defined]
    shorter = settings.model_copy(update={"keep_uploads_days": 1e-9})
    sweeping = ImportUpload(shorter, service.store, service.archiving, service.embedding.sandbox)
    wait(client, upload["embedding"])
    service.importing.expire()
    assert client.get(f"/v1/uploads/{upload['id']}").status_code == 200, "by default nothing expires"
    sweeping.expire()
    assert client.get("/v1/uploads").json()["uploads"] == []
    assert not list((settings.data / "uploads").iterdir())
    assert client.get("/v1/archives/sent-heads").status_code == 200, "the archive stays"


# --- participants.tsv of BIDS ---------------------------------------------------------------------------------------

PARTICIPANTS = b"participant_id\tsex\tgroup\nsub-01\tF\tc\n02\tM\tp\nsub-03\tn/a\tp\nsub-99\tF\tc\n"
SESSIONS = [
    f"sub-0{subject}/ses-{session}/sub-0{subject}_ses-{session}.png" for subject in (1, 2, 3) for session in "12"
]


def dataset(*, top: str = "", **others: bytes) -> bytes:
    """A zip of three participants with two sessions each, and the tables of `others`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for number, name in enumerate(SESSIONS):
            target.writestr(top + name, png(number))
        for name, content in others.items():
            target.writestr(top + name.replace("__", "/") + ".tsv", content)
    return packed.getvalue()


def groups_and_labels(client: TestClient, upload: dict[str, Any]) -> tuple[list[int], list[str | None]]:
    """Of the items in their order, groups numbered as they come."""
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
    numbers: dict[str, int] = {}
    return [numbers.setdefault(one["group"], len(numbers)) for one in items], [one.get("label") for one in items]


def test_participants_in_a_zip_are_the_catalogue(client: TestClient) -> None:
    older = b"participant_id\nsub-01\n"
    content = dataset(top="ds/", participants=PARTICIPANTS, derivatives__old__participants=older)
    found = send(client, files(content, name="ds.zip"), modality="images", label_column="sex")
    assert groups_and_labels(client, found) == ([0, 0, 1, 1, 2, 2], ["F", "F", "M", "M", None, None])
    assert (found["catalog_unused"], found["catalog_unused_rows"], found["catalog_without_row"]) == (1, [5], 0)
    assert found["catalog_missing"] == {"label": {"n/a": 1}}
    assert found["notes"] == ["participants.tsv is taken as the catalogue, and its participants as the groups"]
    assert found["cautions"] == [] and found["skipped"] == 2
    found = send(client, files(content, name="ds.zip"), modality="images")
    assert found["groups"] == 3 and found["labels"] == {}, "the column group is a diagnosis"
    assert found["notes"][0].endswith("; give label_column=COLUMN to take labels from it")


FOLDERS = [f"{case}/night/{number}.png" for case in ("Doe", "Roe") for number in range(3)]
GROUPED_ZIPS = {
    "one folder a case": ([["Lab/" + name for name in FOLDERS]], [0, 0, 0, 1, 1, 1], "2 groups"),
    "parts of it": ([["Lab/" + name for name in FOLDERS[at::2]] for at in (0, 1)], [0, 0, 1, 0, 1, 1], "2 groups"),
    "splits above": ([[f"train/{FOLDERS[0]}", f"train/{FOLDERS[3]}", "val/Poe/1.png"]], [0, 1, 2], "3 groups"),
    "no folder": ([["Doe_1.png", "Roe_1.png"]], [0, 1], None),
    "a zip a case": ([["1.png", "2.png"], ["1.png", "2.png"]], [0, 0, 1, 1], "2 groups"),
}


@pytest.mark.parametrize("case", GROUPED_ZIPS)
def test_folders_in_zips_are_groups_by_the_one_rule(client: TestClient, case: str) -> None:
    zips, groups, told = GROUPED_ZIPS[case]
    found = send(
        client, [("files", (f"{n}.zip", pictures(names, at=10 * n))) for n, names in enumerate(zips)], modality="images"
    )
    assert groups_and_labels(client, found)[0] == groups
    assert found["by_folder"] is None if told is None else told in found["by_folder"]
    assert "oe" not in json.dumps(found["by_folder"])


def test_a_file_beside_a_zip_is_in_no_folder(client: TestClient) -> None:
    parts = [("files", ("x.png", png(40))), ("files", ("a.zip", pictures(FOLDERS)))]
    found = send(client, parts, modality="images")
    assert groups_and_labels(client, found)[0] == [0, 1, 1, 1, 2, 2, 2]
    assert found["by_folder"] == "6 files in 2 folders were taken for 2 groups, by folder (folder:1)"


def test_names_in_zips_tell_the_patient(client: TestClient) -> None:
    """The rules by name of a modality read the names that the client's files have, and not ours."""
    flat = [f"{case}_{kind}.png" for case in ("case1", "case2") for kind in ("t1", "flair")]
    found = send(client, [("files", ("a.zip", pictures(flat, grey=True)))], modality="mri")
    assert groups_and_labels(client, found)[0] == [0, 0, 1, 1]
    tiles = [f"tumor/TCGA-A1-B2C{case}-01Z_{at}.png" for case in (3, 4) for at in (0, 1)]
    found = send(client, [("files", ("a.zip", pictures(tiles)))], modality="histology")
    assert groups_and_labels(client, found)[0] == [0, 0, 1, 1] and found["by_folder"] is None


def pictures(names: list[str], at: int = 0, *, grey: bool = False) -> bytes:
    """A zip of different pictures."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for number, name in enumerate(names):
            picture = np.random.default_rng(at + number).integers(0, 256, (64, 64) if grey else (64, 64, 3), np.uint8)
            target.writestr(name, cv2.imencode(".png", picture)[1].tobytes())
    return packed.getvalue()


def test_participants_as_the_catalogue_of_files(client: TestClient) -> None:
    parts = [("files", (name.rpartition("/")[2], png(number))) for number, name in enumerate(SESSIONS)]
    parts[4] = ("files", ("sub-03_ses-1.png", b"damaged"))
    parts[5] = ("files", ("sub-03_ses-2.png", b"damaged"))
    catalog = ("catalog", ("participants.tsv", PARTICIPANTS))
    found = send(client, [*parts, catalog], modality="images", label_column="group")
    assert groups_and_labels(client, found) == ([0, 0, 1, 1], ["c", "c", "p", "p"])
    assert (found["catalog_unused"], found["catalog_unused_rows"]) == (2, [4, 5]), "none of sub-03 can be read"
    assert found["notes"] == []
    found = send(client, [*parts, ("files", ("participants.tsv", PARTICIPANTS))], modality="images")
    assert found["groups"] == 2 and "is taken as the catalogue" in found["notes"][0]


@pytest.mark.parametrize(
    ("others", "note"),
    [
        ({"participants": b"name\nDoe\n"}, "is not used as the catalogue: The catalogue has no column 'path' or 'part"),
        ({"participants": b"\xff\xfe\x00"}, "participants.tsv is not used as the catalogue: The catalogue"),
        ({"a__participants": b"participant_id\n1\n", "b__participants": b"participant_id\n2\n"}, "hold 2 different"),
        ({"participants": b"participant_id\nsub-9\n"}, "no file has a participant's sub-XX in the name"),
        ({"Doe": b"path\tlabel\n"}, "1 table lies among the files, and is not read. Send the table in the form field"),
    ],
)
def test_tables_in_a_zip_that_are_no_catalogue_are_told(
    client: TestClient, others: dict[str, bytes], note: str
) -> None:
    content = dataset(**others)
    found = send(client, files(content, name="ds.zip"), modality="images")
    assert found["groups"] == 3 and len(found["notes"]) == 1 and note in found["notes"][0], found["notes"]
    assert "Doe" not in found["notes"][0] and found["catalog_unused"] is None
    answer = client.post("/v1/uploads", files=files(content, name="ds.zip"), data={"label_column": "Roe", **IMAGES})
    assert answer.status_code == 422 and answer.json()["remedy"], "a column was asked for"


def test_a_column_of_no_catalogue_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/uploads", files=files(png()), data={"group_column": "patient", **IMAGES})
    assert answer.status_code == 422 and "none was sent" in answer.json()["detail"]
    upload = send(client, files(png()), modality="images")["id"]
    body = {"name": "x", "upload": upload, "encoder": "images", "label_column": "sex"}
    answer = client.post("/v1/archives", json=body)
    assert answer.status_code == 422 and "an upload's catalogue came with it" in answer.json()["detail"]
