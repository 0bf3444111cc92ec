"""The clients of `benchmarks.stress.soak`: what each does in one round, and a note of every answer."""

import io
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

from benchmarks.stress.soak_material import Material

TOLERANCE = 1e-4  # of a vector's numbers, from one batch to another
PAUSE = 0.3  # seconds between two looks at a job


class AbandonedError(Exception):
    """The rest of a round makes no sense: the time is over, or an answer was not what it should be."""


@dataclass(frozen=True)
class Note:
    """One answer: its operation, when it was asked for (seconds of the run), how long it took, and what it was."""

    operation: str
    at: float
    seconds: float
    outcome: str
    is_expected: bool


class Caller:
    """One client with a connection of its own; `notes` is common to all."""

    def __init__(self, address: str, key: str, notes: list[Note], end: threading.Event, *, seed: int) -> None:
        self.address, self.end = address, end
        self.rng = random.Random(seed)
        self._notes, self._zero = notes, time.monotonic()
        self._client = httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {key}"})

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def note(self, operation: str, began: float, outcome: str, *, is_expected: bool) -> None:
        """Keep what became of something that began at `began` (time.monotonic)."""
        self._notes.append(
            Note(operation, began - self._zero, time.monotonic() - began, outcome, is_expected)
        )  # appending is atomic

    def ask(
        self, operation: str, method: str, path: str, *, expect: tuple[int, ...] = (200,), **request: Any
    ) -> httpx.Response:
        """One request.

        Raises:
            AbandonedError: no answer came, or one whose status is not in `expect`.
        """
        began = time.monotonic()
        try:
            answer = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            self.note(operation, began, type(error).__name__, is_expected=False)
            raise AbandonedError from None
        outcome = str(answer.status_code)
        if answer.status_code >= 400:
            outcome += " " + str(answer.json().get("type", "")).rpartition(":")[2]
        self.note(operation, began, outcome, is_expected=answer.status_code in expect)
        if answer.status_code not in expect:
            raise AbandonedError
        return answer

    def check(self, operation: str, holds: bool) -> None:
        """Note an answer with the right status and a wrong content."""
        if not holds:
            self.note(operation, time.monotonic(), "wrong content", is_expected=False)

    def job(self, operation: str, job_id: str, *, began: float) -> dict[str, Any]:
        """Wait for a job's outcome, which shall be success; the job.

        Raises:
            AbandonedError: the time is over, or the job has another outcome.
        """
        while not self.end.wait(PAUSE):
            job: dict[str, Any] = self.ask("look at a job", "GET", f"/v1/jobs/{job_id}").json()
            if job["state"] not in ("queued", "running"):
                self.note(operation, began, job["state"], is_expected=job["state"] == "succeeded")
                if job["state"] == "succeeded":
                    return job
                break
        raise AbandonedError


def embed(caller: Caller, made: Material) -> None:
    """One to four pictures in every form; their vectors are those of the beginning."""
    chosen = caller.rng.sample(range(len(made.vectors)), caller.rng.randint(1, 4))
    sent: dict[str, Any] = {"files": made.files(chosen), "data": {"encoder": "images"}}
    for name, kind, read in FORMS:
        answer = caller.ask(f"embed, {name}", "POST", "/v1/embeddings", headers={"Accept": kind}, **sent)
        vectors = np.array(read(answer), np.float64)
        wanted = np.stack([made.vectors[n] for n in chosen])
        caller.check(
            f"embed, {name}", vectors.shape == wanted.shape and bool(np.allclose(vectors, wanted, atol=TOLERANCE))
        )


def embed_odd(caller: Caller, made: Material) -> None:
    """A broken file alone and among good ones, a volume, a zip of pictures, and a file that is no zip."""
    images = {"encoder": "images"}
    caller.ask(
        "embed, broken file", "POST", "/v1/embeddings", expect=(422,), files=made.broken(caller.rng), data=images
    )
    mixed = [*made.files([0]), *made.broken(caller.rng), *made.files([1])]
    items = caller.ask("embed, one broken of three", "POST", "/v1/embeddings", files=mixed, data=images).json()["items"]
    caller.check("embed, one broken of three", [bool(item.get("error")) for item in items] == [False, True, False])
    volume = [("files", ("head.nii.gz", made.volume))]
    caller.ask("embed, volume", "POST", "/v1/embeddings", files=volume, data={"encoder": "mri"})
    packed = [("files", ("pictures.zip", made.packed))]
    items = caller.ask("embed, zip of 4", "POST", "/v1/embeddings", files=packed, data=images).json()["items"]
    caller.check("embed, zip of 4", len(items) == 4)
    no_zip = [("files", ("pictures.zip", made.packed[:300]))]
    caller.ask("embed, broken file", "POST", "/v1/embeddings", expect=(422,), files=no_zip, data=images)


def learn_files(caller: Caller, made: Material) -> None:
    """A probe from files; it predicts others."""
    chosen = caller.rng.sample(range(len(made.vectors)), 16)
    began, labels = time.monotonic(), json.dumps([str(n % 2) for n in chosen])
    data = {"encoder": "images", "labels": labels, "folds": "2"}
    sent = caller.ask("send a probe's files", "POST", "/v1/probes", expect=(202,), files=made.files(chosen), data=data)
    job = caller.job("probe from 16 files, to its end", sent.json()["id"], began=began)
    for _ in range(4):
        files = made.files(caller.rng.sample(range(len(made.vectors)), 2))
        answer = caller.ask("predict, files", "POST", f"{job['result']}/predictions", files=files)
        caller.check("predict, files", len(answer.json()["items"]) == 2)


def learn_ids(caller: Caller, made: Material) -> None:
    """A probe from items of an archive; it predicts others and tells what to label next."""
    chosen = caller.rng.sample(made.ids, 16)
    began = time.monotonic()
    labels = [{"id": name, "label": str(number % 2)} for number, name in enumerate(chosen)]
    body = {"archive": "table", "labels": labels, "folds": 2}
    sent = caller.ask("send a probe's ids", "POST", "/v1/probes", expect=(202,), json=body)
    job = caller.job("probe from 16 ids, to its end", sent.json()["id"], began=began)
    for _ in range(4):
        body = {"archive": "table", "ids": caller.rng.sample(made.ids, 8)}
        caller.ask("predict, ids", "POST", f"{job['result']}/predictions", json=body)
    caller.ask("what to label next", "GET", f"{job['result']}/uncertain?archive=table&limit=5")


def search(caller: Caller, made: Material) -> None:
    """Neighbours of items and of files; all lists."""
    for _ in range(3):
        body = {"archive": "table", "ids": caller.rng.sample(made.ids, 2), "k": 5}
        items = caller.ask("search, ids", "POST", "/v1/search", json=body).json()["items"]
        caller.check("search, ids", [len(item["hits"]) for item in items] == [5, 5])
    files = made.files([caller.rng.randrange(len(made.vectors))])
    caller.ask("search, file", "POST", "/v1/search", files=files, data={"archive": "table", "k": "5"})
    for name in ("encoders", "archives", "archives/table/ids?limit=20", "uploads", "probes", "jobs?limit=50", "audit"):
        caller.ask(f"list {name.partition('?')[0]}", "GET", f"/v1/{name}")


def upload(caller: Caller, made: Material) -> None:
    """Files, one of them broken, become an archive; it is searched, and goes with its upload."""
    name = f"soak-{caller.rng.randrange(1 << 40):x}"
    files = [*made.files(caller.rng.sample(range(len(made.vectors)), 6)), *made.broken(caller.rng)]
    began = time.monotonic()
    data = {"encoder": "images", "name": name, "embed": "true"}
    sent = caller.ask("upload", "POST", "/v1/uploads", expect=(202,), files=files, data=data).json()
    caller.job("upload of 7, imported", sent["id"], began=began)
    found = caller.ask("look at an upload", "GET", f"/v1/uploads/{sent['id']}").json()
    caller.check("look at an upload", (found["items"], found["refused"]) == (6, 1))
    caller.job("upload of 7, embedded", found["embedding"], began=began)
    ids = caller.ask("ids of the new archive", "GET", f"/v1/archives/{name}/ids").json()["items"]
    body = {"archive": name, "ids": [ids[0]["id"]], "k": 3}
    caller.ask("search, new archive", "POST", "/v1/search", json=body)
    caller.ask("remove an archive", "DELETE", f"/v1/archives/{name}", expect=(204,))
    caller.ask("remove an upload", "DELETE", f"/v1/uploads/{sent['id']}", expect=(204,))


def cancel(caller: Caller, made: Material) -> None:
    """A job that is cancelled some moments later, unless it has ended."""
    files = made.files(range(32))
    data = {"encoder": "images", "labels": json.dumps([str(n % 2) for n in range(32)]), "folds": "2"}
    sent = caller.ask("send a probe's files", "POST", "/v1/probes", expect=(202,), files=files, data=data).json()
    caller.end.wait(caller.rng.uniform(0, 2))
    caller.ask("cancel a job", "DELETE", f"/v1/jobs/{sent['id']}", expect=(200, 409))


def stall(caller: Caller, made: Material) -> None:
    """Half a request, and no more of it: 408. Every other time the client hangs up first."""
    host, port = caller.address.removeprefix("http://").split(":")
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {made.key}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 300000\r\n\r\n--x\r\n"
    head += 'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    began, outcome = time.monotonic(), "no answer"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head.encode() + bytes(120_000))
        if caller.rng.random() < 0.5:
            caller.end.wait(1)
            return
        try:
            outcome = client.recv(64).split()[1].decode()
        except (OSError, IndexError):
            pass  # noted as no answer
    caller.note("stall in a body", began, outcome, is_expected=outcome == "408")


def intrude(caller: Caller, made: Material) -> None:
    """A key that nobody made, more often than is allowed to fail."""
    wrong = {"Authorization": f"Bearer lj_{'0' * 16}_{'x' * 43}"}
    caller.ask("wrong key", "GET", "/v1/encoders", expect=(401, 429), headers=wrong)


FORMS: tuple[tuple[str, str, Callable[[httpx.Response], Any]], ...] = (
    ("JSON", "application/json", lambda answer: [item["vector"] for item in answer.json()["items"]]),
    (
        "NDJSON",
        "application/x-ndjson",
        lambda answer: [json.loads(line)["vector"] for line in answer.text.splitlines()],
    ),
    ("npy", "application/x-npy", lambda answer: np.load(io.BytesIO(answer.content), allow_pickle=False)),
    (
        "Parquet",
        "application/vnd.apache.parquet",
        lambda answer: pq.read_table(io.BytesIO(answer.content))["vector"].to_pylist(),
    ),
)
# What each client does, and the seconds between its rounds.
ROLES: tuple[tuple[Callable[[Caller, Material], None], float], ...] = (
    *((embed, 0.05), (embed, 0.05), (embed_odd, 0.3), (learn_files, 0.5), (learn_ids, 0.5), (search, 0.1)),
    *((upload, 0.5), (cancel, 3.0), (stall, 0.5), (intrude, 0.7)),
)


def play(role: Callable[[Caller, Material], None], pause: float, caller: Caller, made: Material) -> None:
    """Rounds of one client until the end."""
    while not caller.end.is_set():
        try:
            role(caller, made)
        except AbandonedError:
            caller.end.wait(1)
        except Exception as error:  # an answer that cannot be read
            caller.note(role.__name__, time.monotonic(), f"unreadable: {type(error).__name__}", is_expected=False)
            caller.end.wait(1)
        caller.end.wait(pause)
    caller.close()
