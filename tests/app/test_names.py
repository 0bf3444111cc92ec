"""Which item is which file: names in zips and the client's keys, wherever files are sent."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete

from app.api.keys import make_key
from app.api.service import Service
from app.store import AuditRow, KeyRow
from app.uploads.unzip import contents
from lejepa_med.client import Client
from tests.app.helpers import files, png, wait
from tests.app.server import served

IMAGES = {f"night 3/{name}.png": png(number) for number, name in enumerate(("b", "C", "ä", "d"))}
OTHERS = {
    "labels.csv": b"path,label\nb.png,x\n",
    "README": b"read me",
    "README.md": b"read me",
    "Notes.docx": b"PK",
    ".DS_Store": b"x",
    "__MACOSX/night 3/._b.png": b"x",
    "night 3/.hidden.png": png(9),
    "night 3/Thumbs.db": b"x",
    "night 3/about.txt": b"x",
}
SKIPPED = {"labels.csv", "README", "README.md", "Notes.docx", "night 3/.hidden.png", "night 3/about.txt"}
NAMES = sorted(IMAGES)


def zipped(*groups: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in {name: content for group in groups for name, content in group.items()}.items():
            target.writestr(name, content)
    return packed.getvalue()


def ask(client: TestClient, path: str, content: bytes, **fields: Any) -> dict[str, Any]:
    data = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    answer = client.post(path, files=files(content, name="night.zip"), data=data)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
def packed() -> bytes:
    return zipped(OTHERS, IMAGES)


@pytest.fixture(scope="module")
def service(client: TestClient) -> Iterator[Client]:
    with served(client.app) as url, Client(url) as found:
        yield found


def test_what_is_no_image_shifts_nothing(client: TestClient, packed: bytes) -> None:
    alone = ask(client, "/v1/embeddings", zipped(IMAGES), encoder="images")
    found = ask(client, "/v1/embeddings", packed, encoder="images")
    for one, other in zip(found["items"], alone["items"], strict=True):
        assert one.pop("vector") == pytest.approx(other.pop("vector"), abs=1e-5)
    assert found["items"] == alone["items"] and "skipped" not in alone
    found = ask(client, "/v1/embeddings", packed, encoder="images")
    assert [(one["index"], one["name"]) for one in found["items"]] == list(enumerate(NAMES))
    assert {(one["file_index"], one["name"]) for one in found["skipped"]} == {(0, name) for name in SKIPPED}
    sent = {"files": files(IMAGES[NAMES[2]]), "data": {"encoder": "images"}}
    (each,) = client.post("/v1/embeddings", **sent).json()["items"]  # type: ignore[arg-type]
    assert found["items"][2]["vector"] == pytest.approx(each["vector"], abs=1e-5) and "name" not in each


def test_keys_in_every_form_of_answer(client: TestClient, packed: bytes) -> None:
    sent = {
        "files": [*files(png(0), packed, b"bad"), *files(zipped(IMAGES), name="all.zip")],
        "data": {"encoder": "images", "keys": json.dumps([2**63 + 1, {NAMES[1]: "k 1"}, "broken", "whole"])},
    }
    sent["files"][1] = ("files", ("some.zip", packed))
    expected = [
        (2**63 + 1, None),
        *((("k 1" if name == NAMES[1] else None), name) for name in NAMES),
        ("broken", None),
        *(("whole", name) for name in NAMES),
    ]
    answer = client.post("/v1/embeddings", **sent).json()  # type: ignore[arg-type]
    assert [(one.get("key"), one.get("name")) for one in answer["items"]] == expected
    assert answer["items"][5]["error"]["remedy"]
    arrow = client.post(
        "/v1/embeddings",
        **sent,  # type: ignore[arg-type]
        headers={"Accept": "application/vnd.apache.arrow.stream"},
    )
    assert arrow.headers["x-skipped-files"] == str(len(SKIPPED))
    rows = pa.ipc.open_stream(arrow.content).read_all().to_pylist()
    assert [(row["key"], row["name"]) for row in rows] == [(key and str(key), name) for key, name in expected]
    lines = client.post("/v1/embeddings", **sent, headers={"Accept": "application/x-ndjson"})  # type: ignore[arg-type]
    assert [(one.get("key"), one.get("name")) for one in map(json.loads, lines.text.splitlines())] == expected


def test_search_and_predictions_give_names_and_keys(client: TestClient, packed: bytes) -> None:
    ids = [one["id"] for one in client.get("/v1/archives/table/ids").json()["items"]]
    labels = [{"id": one, "label": "ab"[place % 2]} for place, one in enumerate(ids)]
    probe = wait(
        client, client.post("/v1/probes", json={"archive": "table", "labels": labels, "folds": 2}).json()["id"]
    )
    keys = [{name: place for place, name in enumerate(NAMES)}]
    near = ask(client, "/v1/search", packed, archive="table", k="2", keys=keys)
    predicted = ask(client, f"/v1/probes/{probe['id']}/predictions", packed, keys=keys)
    for found in (near, predicted):
        assert [(one["name"], one["key"]) for one in found["items"]] == [(name, n) for n, name in enumerate(NAMES)]
        assert {one["name"] for one in found["skipped"]} == SKIPPED
    assert all(len(one["hits"]) == 2 for one in near["items"])


def test_errors_name_the_file_in_the_client_s_words(client: TestClient, packed: bytes) -> None:
    sent = {"encoder": "images", "labels": '["a", "b", "a", "b"]', "keys": '["k0", "k1", "k2", null]', "folds": "2"}
    bad = client.post("/v1/probes", files=files(png(0), png(1), png(2)[:200], png(3)), data=sent)
    assert (bad.status_code, bad.json()["key"], bad.json()["file_index"]) == (422, "k2", 2)
    assert "position 2 of the request (counted from 0, key k2)" in bad.json()["detail"]
    several = [*files(png(0), png(1), png(2)), *files(packed, name="a.zip")]
    answer = client.post("/v1/probes", files=several, data=sent).json()
    assert "holds 4 items, but has one label" in answer["detail"] and "/v1/uploads" in answer["remedy"]
    cut = zipped(OTHERS, {"a/cut.png": png(3)[:300]})
    answer = client.post("/v1/embeddings", files=files(cut, name="x.zip"), data={"encoder": "images"}).json()
    assert answer["name"] == "a/cut.png" and answer["detail"].startswith("'a/cut.png' in the file at position 0")
    good = client.post("/v1/probes", files=files(*map(png, range(4))), data=sent)
    assert wait(client, good.json()["id"])["state"] == "succeeded"


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ('["a", "b"]', "1 files and 2 keys"),
        ('[{"b.png": "x"}]', "are not names of images in the zip"),
        ('[{"labels.csv": "x"}]', "are not names of images in the zip"),
        ('{"a.png": "x"}', "keys"),
        ("[1.5]", "keys"),
        ('["two\\nlines"]', "keys"),
    ],
)
def test_keys_that_do_not_fit_are_refused(client: TestClient, packed: bytes, keys: str, cause: str) -> None:
    sent = {"files": files(packed, name="a.zip"), "data": {"encoder": "images", "keys": keys}}
    for path in ("/v1/embeddings", "/v1/uploads"):
        answer = client.post(path, **sent)  # type: ignore[arg-type]
        assert answer.status_code == 422 and cause in answer.json()["detail"] and answer.json()["remedy"], answer.text
    plain = {"files": files(png()), "data": {"encoder": "images", "keys": '[{"image.png": "x"}]'}}
    assert "is no zip" in client.post("/v1/embeddings", **plain).json()["detail"]  # type: ignore[arg-type]


def test_names_that_a_mac_writes_without_the_flag_for_utf_8(tmp_path: Path, client: TestClient) -> None:
    whole = zipped({"Ångström.png": png()})
    flagged = [place for place in range(len(whole)) if whole[place : place + 4] in (b"PK\x03\x04", b"PK\x01\x02")]
    without = bytearray(whole)
    for place in flagged:
        without[place + (7 if whole[place : place + 4] == b"PK\x03\x04" else 9)] &= ~0x08
    assert without != whole
    (tmp_path / "a.zip").write_bytes(without)
    settings = client.app.state.service.settings  # type: ignore[attr-defined]
    assert contents(tmp_path / "a.zip", settings).names == {"00000.png": "Ångström.png"}


@pytest.fixture
def upload(client: TestClient, packed: bytes) -> dict[str, Any]:
    answer = client.post(
        "/v1/uploads",
        files=[*files(png(7), png(8)[:300]), *files(zipped(OTHERS, IMAGES, {"D.png": b"no picture"}), name="n.zip")],
        data={
            "encoder": "images",
            "name": "named",
            "embed": "true",
            "archive": "named",
            "keys": json.dumps(["single", 17, {NAMES[0]: "first"}]),
        },
    )
    assert answer.status_code == 202, answer.text
    assert wait(client, answer.json()["id"])["state"] == "succeeded"
    found: dict[str, Any] = client.get(f"/v1/uploads/{answer.json()['id']}").json()
    return found


def test_an_upload_tells_its_sender_which_item_is_which_file(client: TestClient, upload: dict[str, Any]) -> None:
    items = client.get(f"/v1/uploads/{upload['id']}/items").json()["items"]
    told = [(one["file_index"], one["entry"], one["name"], one["key"]) for one in items]
    # Entries count the images of the zip by name, so the damaged D.png is 0, and labels.csv and the others are none.
    inside = [(2, place + 1, name, "first" if place == 0 else None) for place, name in enumerate(NAMES)]
    assert told == [(0, None, None, "single"), *inside]
    refused = {
        (one["file_index"], one.get("entry"), one.get("name"), one.get("key")) for one in upload["refused_items"]
    }
    assert refused == {(1, None, None, 17), (2, 0, "D.png", None)}
    assert (upload["items"], upload["refused"], upload["skipped"]) == (5, 2, len(SKIPPED))
    assert {one["name"] for one in upload["skipped_files"]} == SKIPPED
    wait(client, upload["embedding"])
    ids = client.get("/v1/archives/named/ids").json()["items"]
    assert [(one["id"], one["name"], one["key"]) for one in ids] == [(i["id"], i["name"], i["key"]) for i in items]

    service: Service = client.app.state.service  # type: ignore[attr-defined]
    try:
        _, key = make_key(service.store, name="other", scopes=["embed"])
        service.keys.refresh(at_once=True)
        other = {"Authorization": f"Bearer {key}"}
        for place in (f"uploads/{upload['id']}/items", f"uploads/{upload['id']}", "archives/named/ids"):
            answer = client.get(f"/v1/{place}", headers=other)
            assert answer.status_code == 200
            for word in (*SKIPPED, *NAMES, "D.png", "single", "first"):
                assert json.dumps(word)[1:-1] not in answer.text and word not in answer.text, (place, word)
    finally:
        with service.store._write() as session:
            for table in (KeyRow, AuditRow):
                session.execute(delete(table))
        service.keys.refresh(at_once=True)
    assert client.delete("/v1/archives/named").status_code == 204
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert not (service.settings.data / "uploads" / upload["id"]).exists()


def test_the_python_client_gives_a_folder_s_own_paths_back(service: Client, tmp_path: Path) -> None:
    folder = tmp_path / "Mustermann"
    for name, content in {**OTHERS, **IMAGES}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    single = folder / NAMES[0]
    keys = [{name: f"key of {name}" for name in NAMES}, 5]
    names = [*NAMES, None]
    expected = [*(f"key of {name}" for name in NAMES), 5]
    found = service.embed(folder, single, encoder="images", keys=keys)
    assert sorted((one.name or "", one.key) for one in found.items) == sorted(
        (name or "", key) for name, key in zip(names, expected, strict=True)
    )
    hidden = {".DS_Store", "night 3/.hidden.png"}
    assert {one.name for one in found.skipped or []} == SKIPPED - hidden | {"night 3/Thumbs.db"}
    many = list(
        service.embed_many([single, folder, (b"bad", ".png")], encoder="images", keys=["a", None, "c"], batch=1)
    )
    assert [(one.file_index, one.key) for one in many] == [(0, "a"), *[(1, None)] * 4, (2, "c")]
    assert {one.name for one in many[1:5]} == set(NAMES)
    near = service.search_files("table", single, folder, k=1, keys=["one", None])
    assert (near[0].key, {one.name for one in near[1:]}) == ("one", set(NAMES))
    with pytest.raises(ValueError, match="2 files and 1 keys"):
        service.embed(folder, single, encoder="images", keys=["a"])

    job = service.send_upload([folder, single], name="of a folder", modality="images", keys=keys)
    service.wait(job, timeout=60, poll=0.05)
    items = list(service.upload_items(job.id, files=[folder, single]))
    assert sorted((one.name or "", str(one.key)) for one in items) == sorted(
        (name or "", str(key)) for name, key in zip(names, expected, strict=True)
    )
    job = service.train_probe([folder / name for name in NAMES], ["a", "a", "b", "b"], encoder="images", keys=NAMES)
    service.wait(job, timeout=60, poll=0.05)
    (found_item,) = service.predict_files(job.id, [single], keys=["mine"])
    assert found_item.key == "mine" and found_item.label in ("a", "b")
