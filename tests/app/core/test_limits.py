"""How much one caller may do."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.api.service import Service
from app.core import limits
from app.core.errors import ProblemError
from app.core.limits import Buckets, Caller, RateLimits, charge_items, place
from app.core.settings import Settings
from tests.app.helpers import files, png


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service with small limits; they are its own again afterwards."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    update = {"requests_per_minute": 6, "items_per_minute": 3, "failures_per_minute": 2, "jobs_per_key": 1}
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update=update))
    monkeypatch.setattr(service, "limits", RateLimits(service.settings))
    yield service


def test_a_bucket_fills_evenly(clock: Clock) -> None:
    buckets = Buckets("requests", 60, clock=clock)
    assert [buckets.take("a").count for _ in range(60)] == list(range(59, -1, -1))
    with pytest.raises(ProblemError) as caught:
        buckets.take("a")
    assert (caught.value.problem.status, caught.value.headers["Retry-After"]) == (429, "1")
    assert caught.value.headers["RateLimit"] == '"requests";r=0;t=60'
    assert caught.value.headers["RateLimit-Policy"] == '"requests";q=60;w=60'
    assert buckets.take("b").count == 59, "each caller has its own"
    clock.now += 1
    assert buckets.take("a").count == 0
    with pytest.raises(ProblemError):
        buckets.take("a")
    clock.now += 3600
    assert buckets.take("a").count == 59, "no more than a minute's worth is saved"


def test_a_large_request_passes_when_nothing_was_taken_and_is_owed(clock: Clock) -> None:
    buckets = Buckets("items", 10, clock=clock)
    assert buckets.take("a", 30).count == 0
    with pytest.raises(ProblemError) as caught:
        buckets.take("a")
    assert caught.value.headers["Retry-After"] == str((20 + 1) * 6)
    clock.now += (20 + 1) * 6
    buckets.take("a")
    with pytest.raises(ProblemError):
        buckets.take("a", 30)


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALLERS", 100)
    buckets = Buckets("requests", 6000, clock=clock)
    for number in range(1000):
        buckets.take(f"10.0.{number >> 8}.{number & 255}")
        buckets.take("busy")
    assert len(buckets._levels) == 100 and "busy" in buckets._levels


def test_requests_of_one_caller(client: TestClient, limited: Service) -> None:
    answers = [client.get("/v1/encoders") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429]
    assert answers[0].headers["ratelimit"] == '"requests";r=5;t=10'
    last = answers[-1]
    assert last.json()["type"] == "urn:lejepa-med:problem:too-many" and last.json()["remedy"]
    assert 1 <= int(last.headers["retry-after"]) <= 10
    assert client.get("/healthz").status_code == 200, "open routes are not counted"


def test_items_of_one_caller(client: TestClient, limited: Service) -> None:
    sent = {"files": files(png(1), png(2)), "data": {"encoder": "images"}}
    assert client.post("/v1/embeddings", **sent).status_code == 200  # type: ignore[arg-type]
    refused = client.post("/v1/embeddings", **sent)  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["detail"]) == (429, "More than 3 items a minute.")


def test_nobody_at_this_machine_is_limited_and_jobs_are_not_charged(settings: Settings) -> None:
    few = RateLimits(settings.model_copy(update={"items_per_minute": 1}))
    charge_items(1000)  # no caller: a job
    limits.begin(Caller(key_id=None, scopes=frozenset(), address="loopback", limits=few))
    charge_items(1000)
    limits.begin(Caller(key_id="k", scopes=frozenset(), address="loopback", limits=few))
    charge_items(1)
    with pytest.raises(ProblemError):
        charge_items(1)
    limits._caller.set(None)


def test_refused_keys_of_one_address(client: TestClient, limited: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "settings", limited.settings.model_copy(update={"auth": "on"}))
    before = len(limited.store.audit(limit=100))
    answers = [client.get("/v1/encoders", headers={"X-API-Key": f"lj_{n}"}) for n in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429, 429]
    assert len(limited.store.audit(limit=100)) == before + 2, "the trail cannot be flooded"
    limited.store.prune_audit(before=1e12)


def test_unfinished_jobs_of_one_caller(client: TestClient, limited: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
    body = {"archive": "table", "labels": [{"id": name, "label": f"l{row % 2}"} for row, name in enumerate(ids)]}
    monkeypatch.setattr(limited.store, "claim_job", lambda **_: None)  # no worker takes it, so it does not end
    limited.store.add_job("waiting", "train-probe")
    try:
        refused = client.post("/v1/probes", json=body)
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:lejepa-med:problem:too-many-jobs")
        assert int(refused.headers["retry-after"]) > 0
        assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"] if job["state"] == "queued"] == ["waiting"]
        assert not any((limited.settings.data / "jobs").iterdir()), "its inputs are gone"
    finally:
        limited.store.cancel_job("waiting")


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"),
    ],
)
def test_addresses(host: str | None, counted: str) -> None:
    assert place(host) == counted
