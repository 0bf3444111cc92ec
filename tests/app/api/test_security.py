"""Who gets in: keys and their scopes, hosts and pages, ownership, and the audit trail."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete
from starlette.routing import Route

from app.api.keys import FORM, KeyRing, make_key
from app.api.security import access, access_of, check_bind, each_route
from app.api.service import Service
from app.core.settings import Settings, is_loopback
from app.main import create_app
from app.store import AuditRow, JobRow, KeyRow, now, open_store
from data_adapters.errors import UserError
from tests.app.helpers import files, png
from tests.app.server import served

OPEN = {"/", "/docs", "/healthz", "/openapi.json", "/readyz"}


@pytest.fixture
def service(client: TestClient) -> Service:
    found: Service = client.app.state.service  # type: ignore[attr-defined]
    return found


@pytest.fixture
def keyed(service: Service) -> Iterator[Callable[..., dict[str, str]]]:
    """A function that makes a key and gives the header that sends it; all keys and lines go at the end."""

    def make(*scopes: str, days: float | None = None) -> dict[str, str]:
        _, key = make_key(service.store, name="test", scopes=scopes, days=days)  # type: ignore[arg-type]
        service.keys.refresh(at_once=True)
        return {"Authorization": f"Bearer {key}"}

    try:
        yield make
    finally:
        with service.store._write() as session:
            for table in (KeyRow, AuditRow):
                session.execute(delete(table))
        service.keys.refresh(at_once=True)


def key_id(header: dict[str, str]) -> str:
    match = FORM.fullmatch(header["Authorization"].partition(" ")[2])
    assert match is not None
    return match[1]


def test_every_route_declares_who_may_use_it(client: TestClient) -> None:
    app: FastAPI = client.app  # type: ignore[assignment]
    found = {route.path: access_of(route) for route in each_route(app.routes)}  # type: ignore[attr-defined]
    assert {"/v1/embeddings", "/openapi.json", "/", "/v1/keys/{key_id}"} <= found.keys()
    for path, declared in found.items():
        assert declared is not None, path
        assert declared.is_open == (path in OPEN or path.startswith("/web/")), path


@pytest.mark.parametrize("path", ["/v2/new", "/v1/encoders"])
def test_a_route_that_declares_nothing_stops_the_start(settings: Settings, path: str) -> None:
    app = create_app(settings)
    app.put(path)(lambda: {"secret": 1})
    with pytest.raises(UserError, match=f"PUT {path}") as caught, TestClient(app):
        pass
    assert "@access" in caught.value.remedy and app.state.refused is caught.value


def test_a_route_that_is_not_checked_is_closed(service: Service, settings: Settings) -> None:
    """In an app whose lifespan did not run: nothing declared, or out of the middleware's sight."""
    app = create_app(settings)
    app.state.service = service
    app.get("/v2/new")(lambda: {"secret": 1})
    router = APIRouter()
    router.get("/below")(access()(lambda: {"secret": 1}))
    app.include_router(router, prefix="/v2/prefix")
    stranger = TestClient(app)
    for path in ("/v2/new", "/v2/prefix/below"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:lejepa-med:problem:internal"), path
        assert "secret" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(("scope", "status"), [(None, 401), ("probe", 403)])
def test_a_large_upload_is_refused_before_its_body_is_read(
    client: TestClient, keyed: Callable[..., dict[str, str]], scope: str | None, status: int, method: str
) -> None:
    """Also for a method that the path does not have; a real server must not take the rest from the network either."""
    given = keyed(scope or "admin")
    headers = given if scope is not None else {}
    read = 0

    async def counting(request: Any, receive: Any, send: Any) -> None:
        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return message

        await client.app(request, counted, send)

    size, piece = 1 << 30, bytes(1 << 16)
    path = "/v1/uploads"
    head = [f"{method} {path} HTTP/1.1", "Host: testserver", f"Content-Length: {size}"]
    head += ["Content-Type: multipart/form-data; boundary=b", *(f"{name}: {text}" for name, text in headers.items())]
    with served(counting) as url, socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        connection.settimeout(20)
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        sent = 0
        try:
            while sent < size:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass  # the server has closed the connection
        answer = connection.recv(1 << 16)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert read < 64 << 10
    assert sent < 64 << 20, "what the system's buffers took"


def test_without_keys_this_machine_may_do_all_but_make_keys(client: TestClient) -> None:
    assert client.get("/v1/encoders").status_code == client.get("/v1/audit").status_code == 200
    for answer in (client.get("/v1/keys"), client.post("/v1/keys", json={"name": "a", "scopes": ["admin"]})):
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:lejepa-med:problem:first-key")
        assert "lejepa-med key create" in answer.json()["remedy"]


def test_once_there_is_a_key_it_is_asked_for(client: TestClient, keyed: Callable[..., dict[str, str]]) -> None:
    header = keyed("embed")
    refused = client.get("/v1/encoders")
    assert (refused.status_code, refused.json()["type"]) == (401, "urn:lejepa-med:problem:key-missing")
    assert refused.headers["www-authenticate"] == 'Bearer realm="lejepa-med"'
    assert "Authorization: Bearer" in refused.json()["remedy"]
    assert client.get("/v1/encoders", headers=header).status_code == 200
    other = {"X-API-Key": header["Authorization"].removeprefix("Bearer ")}
    assert client.get("/v1/encoders", headers=other).status_code == 200
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/web/main.js"):
        assert client.get(path).status_code not in (401, 403), path  # /readyz is 503 while encoders warm up


def test_unknown_ids_and_wrong_secrets_look_alike(client: TestClient, keyed: Callable[..., dict[str, str]]) -> None:
    key = keyed("admin")["Authorization"].removeprefix("Bearer ")
    wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
    unknown = "lj_0123456789abcdef_" + key.rpartition("_")[2][-43:].rjust(43, "x")
    answers = [
        client.get("/v1/encoders", headers={b"authorization": b"Bearer " + given.encode("latin-1")})
        for given in (wrong, unknown, "lj_", "x" * 5000, "\xe9")
    ]
    bodies = [{**answer.json(), "reference": None} for answer in answers]
    assert [answer.status_code for answer in answers] == [401] * 5
    assert all(body == bodies[0] for body in bodies) and bodies[0]["type"].endswith(":invalid-key")
    assert len({answer.headers["www-authenticate"] for answer in answers}) == 1


def test_scopes(client: TestClient, keyed: Callable[..., dict[str, str]]) -> None:
    embed, probe, admin = keyed("embed"), keyed("probe"), keyed("admin")
    sent = {"files": files(png()), "data": {"encoder": "images"}}
    assert client.post("/v1/embeddings", headers=embed, **sent).status_code == 200  # type: ignore[arg-type]
    assert client.post("/v1/embeddings", headers=admin, **sent).status_code == 200  # type: ignore[arg-type]
    refused = client.post("/v1/embeddings", headers=probe, **sent)  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:lejepa-med:problem:missing-scope")
    assert "'embed'" in refused.json()["detail"] and "--scopes embed" in refused.json()["remedy"]
    assert 'error="insufficient_scope", scope="embed"' in refused.headers["www-authenticate"]
    assert client.post("/v1/probes", headers=embed, json={}).status_code == 403
    assert client.post("/v1/probes", headers=probe, json={}).status_code == 422  # admitted, and the body is wrong
    for header in (embed, probe):
        assert client.get("/v1/probes", headers=header).status_code == 200  # results are the whole lab's
        assert client.get("/v1/keys", headers=header).status_code == 403
        assert client.get("/v1/audit", headers=header).status_code == 403


def test_expiry_and_revocation(client: TestClient, service: Service, keyed: Callable[..., dict[str, str]]) -> None:
    admin, short, doomed = keyed("admin"), keyed("embed", days=1e-9), keyed("embed")
    expired = client.get("/v1/encoders", headers=short)
    assert (expired.status_code, expired.json()["type"]) == (401, "urn:lejepa-med:problem:expired-key")
    assert client.get("/v1/encoders", headers=doomed).status_code == 200
    assert client.delete(f"/v1/keys/{key_id(doomed)}", headers=admin).json()["revoked"] is not None
    revoked = client.get("/v1/encoders", headers=doomed)
    assert (revoked.status_code, revoked.json()["type"]) == (401, "urn:lejepa-med:problem:revoked-key")
    own = client.delete(f"/v1/keys/{key_id(admin)}", headers=admin)
    assert (own.status_code, own.json()["type"]) == (403, "urn:lejepa-med:problem:own-key")
    assert client.delete("/v1/keys/0000", headers=admin).status_code == 404
    # by another process, such as the command line: within the time that keys are remembered
    service.store.revoke_key(key_id(admin))
    end = time.monotonic() + 5
    while client.get("/v1/encoders", headers=admin).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert client.get("/v1/encoders").status_code == 401, "no key is left, and the door stays closed"


def test_keys_over_rest_and_nothing_but_a_hash_at_rest(
    client: TestClient, service: Service, keyed: Callable[..., dict[str, str]]
) -> None:
    admin = keyed("admin")
    made = client.post("/v1/keys", headers=admin, json={"name": "gw", "scopes": ["embed"], "expires_days": 2})
    assert made.status_code == 201 and made.headers["location"] == f"/v1/keys/{made.json()['id']}"
    header = {"Authorization": f"Bearer {made.json()['key']}"}
    assert client.get("/v1/encoders", headers=header).status_code == 200
    listed = client.get("/v1/keys", headers=admin)
    assert [(key["name"], key["scopes"]) for key in listed.json()["keys"]] == [("test", ["admin"]), ("gw", ["embed"])]
    used = listed.json()["keys"][1]["last_used"]
    assert used is not None
    client.get("/v1/encoders", headers=header)
    assert client.get("/v1/keys", headers=admin).json()["keys"][1]["last_used"] == used, "written once a minute"
    secret = made.json()["key"].split("_", 2)[2]
    rows = service.store.keys()
    assert secret not in listed.text and all(secret not in str(vars(row)) for row in rows)
    assert all(len(row.secret_sha256) == 64 for row in rows)
    for wrong in ({"name": "x", "scopes": []}, {"name": "x", "scopes": ["root"]}, {"name": "", "scopes": ["embed"]}):
        assert client.post("/v1/keys", headers=admin, json=wrong).status_code == 422


def test_foreign_names_for_this_machine_are_refused(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, keyed: Callable[..., dict[str, str]]
) -> None:
    """DNS rebinding: a web page's own name that suddenly points to 127.0.0.1."""
    for name in ("localhost:8000", "127.0.0.1", "[::1]:9", "LOCALHOST", "testserver"):
        assert client.get("/v1/encoders", headers={"Host": name}).status_code == 200, name
    for name in ("evil.example", "127.0.0.1.evil.example:8000", "", "localhost.evil"):
        refused = client.get("/v1/encoders", headers={"Host": name})
        assert (refused.status_code, refused.json()["type"]) == (421, "urn:lejepa-med:problem:wrong-host"), name
        assert "LEJEPA_ALLOWED_HOSTS" in refused.json()["remedy"]
    assert client.get("/healthz", headers={"Host": "10.0.0.3:8000"}).status_code == 200
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"allowed_hosts": ""}))
    assert client.get("/v1/encoders").status_code == 421
    assert client.get("/v1/encoders", headers=keyed("embed")).status_code == 200, "a key is what no such page has"


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://testserver"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://testserver.evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://[", "Sec-Fetch-Site": ""}, False),
    ],
)
def test_pages_of_other_sites_change_nothing(client: TestClient, headers: dict[str, str], passes: bool) -> None:
    answer = client.post("/v1/probes", headers=headers, json={})
    assert answer.status_code == (422 if passes else 403)
    assert passes or answer.json()["type"] == "urn:lejepa-med:problem:cross-site"
    assert client.get("/v1/encoders", headers=headers).status_code == 200, "reading shows them nothing: no CORS"
    allowed = client.options("/v1/probes", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert allowed.status_code == 405
    assert not [name for name in (*answer.headers, *allowed.headers) if name.startswith("access-control")]


def test_a_job_is_ended_by_who_asked_for_it(
    client: TestClient, service: Service, keyed: Callable[..., dict[str, str]]
) -> None:
    mine, other, admin = keyed("probe"), keyed("probe"), keyed("admin")
    ids = [item["id"] for item in client.get("/v1/archives/table/ids", headers=mine).json()["items"]]
    labels = [{"id": name, "label": f"l{row % 2}"} for row, name in enumerate(ids)]
    made = client.post("/v1/probes", headers=mine, json={"archive": "table", "labels": labels, "folds": 2})
    assert made.status_code == 202, made.text
    job = made.json()["id"]
    row = service.store.job(job)
    assert row is not None and row.key_id == key_id(mine)
    refused = client.delete(f"/v1/jobs/{job}", headers=other)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:lejepa-med:problem:other-owner")
    end = time.monotonic() + 30
    while client.get(f"/v1/jobs/{job}", headers=other).json()["state"] != "succeeded":
        assert time.monotonic() < end
        time.sleep(0.05)
    probe = service.store.probe(job)
    assert probe is not None and probe.key_id == key_id(mine), "what a job makes is its key's"
    assert client.delete(f"/v1/jobs/{job}", headers=admin).status_code == 409
    assert client.delete("/v1/jobs/none", headers=admin).status_code == 404
    # the trail: the job, and the refusal; the 409 and the 404 changed nothing
    lines = client.get("/v1/audit?limit=2", headers=admin).json()["lines"]
    assert [(line["action"], line["status"], line["key_id"], line["target"]) for line in lines] == [
        ("DELETE /v1/jobs/{job_id}", 403, key_id(other), job),
        ("POST /v1/probes", 202, key_id(mine), job),
    ]
    with service.store._write() as session:
        session.execute(delete(JobRow).where(JobRow.id == job))


def test_audit_trail(client: TestClient, service: Service, keyed: Callable[..., dict[str, str]]) -> None:
    admin, embed = keyed("admin"), keyed("embed")
    began = now()
    client.get("/v1/encoders", headers=admin)
    client.post("/v1/embeddings", headers=embed, files=files(png()), data={"encoder": "images"})
    client.get("/v1/jobs")
    client.get("/v1/keys/Mustermann", headers=embed)
    made = client.post("/v1/keys", headers=admin, json={"name": "gw", "scopes": ["embed"]}).json()
    client.delete(f"/v1/keys/{made['id']}", headers=admin)
    answer = client.get("/v1/audit", headers=admin, params={"limit": 3})
    found = [(line["action"], line["status"], line["key_id"], line["target"]) for line in answer.json()["lines"]]
    assert found == [
        ("DELETE /v1/keys/{key_id}", 200, key_id(admin), made["id"]),
        ("POST /v1/keys", 201, key_id(admin), made["id"]),
        ("GET /v1/keys/{key_id}", 403, key_id(embed), None),
    ]
    rest = client.get(answer.json()["next"], headers=admin).json()
    assert [line["status"] for line in rest["lines"]] == [401] and rest["next"] is None
    assert "Mustermann" not in answer.text + str(rest)
    at = answer.json()["lines"][0]["at"]
    assert client.get("/v1/audit", headers=admin, params={"until": at}).json()["lines"][0]["action"] == "POST /v1/keys"
    assert len(client.get("/v1/audit", headers=admin, params={"since": at}).json()["lines"]) == 1
    assert client.get("/v1/audit?since=yesterday", headers=admin).status_code == 422
    service.store.prune_audit(before=began)
    assert len(service.store.audit(limit=10)) == 4
    service.store.prune_audit(before=now())
    assert service.store.audit(limit=10) == []


def test_the_trail_is_not_what_stops_the_service(
    client: TestClient, service: Service, keyed: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = keyed("admin")
    monkeypatch.setattr(service.store, "add_audit", None)  # calling it fails, as a full disk would
    assert client.post("/v1/keys", headers=admin, json={"name": "gw", "scopes": ["embed"]}).status_code == 201


def test_the_ring_reads_keys_once_a_second(client: TestClient, service: Service) -> None:
    ring = KeyRing(service.store)
    assert not ring.is_fresh and len(ring) == 0
    ring.refresh()
    assert ring.is_fresh


def test_a_public_address_needs_a_key(tmp_path: object, settings: Settings) -> None:
    public = Settings(host="0.0.0.0", data_dir=f"{tmp_path}/data")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"0\.0\.0\.0") as caught:
        check_bind(public)
    assert "lejepa-med key create" in caught.value.remedy and "LEJEPA_ALLOW_UNAUTHENTICATED" in caught.value.remedy
    assert not public.data.exists(), "asking makes nothing"
    with pytest.raises(UserError, match="Nobody would be asked"):
        check_bind(public.model_copy(update={"auth": "off"}))
    for allowed in ({"auth": "on"}, {"allow_unauthenticated": True}, {"host": "127.0.0.1"}):
        check_bind(public.model_copy(update=allowed))
    store = open_store(public)
    make_key(store, name="first", scopes=["admin"])
    store.close()
    check_bind(public)
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_when_a_key_is_asked_for() -> None:
    assert Settings().asks_nobody and Settings(auth="off", host="::").asks_nobody
    assert Settings(host="0.0.0.0", allow_unauthenticated=True).asks_nobody
    assert not Settings(host="0.0.0.0").asks_nobody and not Settings(auth="on").asks_nobody


def test_the_document_tells_how_keys_are_sent_and_which_scope_each_operation_needs(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    app: FastAPI = client.app  # type: ignore[assignment]
    known = {
        (route.path_format, method): access_of(route)
        for route in each_route(app.routes)
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    assert {one["type"] for one in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            declared = known[path, method.upper()]
            assert declared is not None
            if declared.is_open:
                assert operation["security"] == []
                continue
            assert {name for way in operation["security"] for name in way} == {"key", "header"}
            told = operation["description"].partition("Scope: ")[2]
            assert all(f"`{scope}`" in told for scope in declared.scopes) and (declared.scopes or told == "any")
    assert client.get("/openapi.json").json() == document, "written once"
