"""SIGTERM to the real process: what is in flight is finished, new work is refused, jobs go on at the next start."""

import json
import os
import signal
import socket
import time

import httpx

from harness.launcher import Launcher
from tests.app.helpers import client_of, eventually, files, png

DRAIN = 8.0  # seconds; long against what an end takes on a busy machine


class Upload:
    """An embedding request whose body is sent in two halves."""

    def __init__(self, client: httpx.Client) -> None:
        fields = {"files": ("a.png", png(7), "image/png"), "encoder": (None, "images")}
        request = client.build_request("POST", "/v1/embeddings", files=fields, headers={"Connection": "close"})
        body = request.read()
        lines = ["POST /v1/embeddings HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
        head = "\r\n".join([*lines, "", ""])
        self.rest = body[len(body) // 2 :]
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)
        self.socket.sendall(head.encode() + body[: len(body) // 2])
        eventually(lambda: "lejepa_requests_in_flight 2.0" in client.get("/metrics").text)

    def finish(self) -> str:
        self.socket.sendall(self.rest)
        answer = b""
        while piece := self.socket.recv(1 << 16):
            answer += piece
        self.socket.close()
        return answer.decode()


def test_drain(launcher: Launcher) -> None:
    service = launcher.service(drain_seconds=DRAIN)
    with client_of(service) as client:
        upload = Upload(client)
        count = 200
        sent = {
            "files": files(*(png(i, bright=i % 2 == 0) for i in range(count))),
            "data": {"encoder": "images", "labels": json.dumps([str(i % 2) for i in range(count)])},
        }
        job = client.post("/v1/probes", **sent).json()["id"]
        eventually(lambda: client.get(f"/v1/jobs/{job}").json()["progress"] > 0)
        os.kill(service.pid, signal.SIGTERM)
        eventually(lambda: client.get("/readyz").status_code == 503)
        ready = client.get("/readyz")
        assert ready.json()["status"] == "draining"
        refused = client.post("/v1/probes", **sent)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:lejepa-med:problem:draining")
        assert int(refused.headers["retry-after"]) > 0 and refused.json()["reference"]
        assert client.get("/healthz").status_code == 200
        running = client.get(f"/v1/jobs/{job}").json()
        assert running["state"] == "running"
        answer = upload.finish()
        assert answer.startswith("HTTP/1.1 200") and '"vector"' in answer
        began = time.monotonic()
        assert service.wait() == 0
        assert time.monotonic() - began < DRAIN, "it ends when nothing is in flight"
    for line in service.log.read_text().splitlines():
        assert json.loads(line)["event"], "no terminal, so JSON"

    service = launcher.service(drain_seconds=DRAIN)
    with client_of(service) as client:
        eventually(lambda: client.get(f"/v1/jobs/{job}").json()["state"] in ("running", "succeeded"))
        assert client.get(f"/v1/jobs/{job}").json()["progress"] >= running["progress"], "the job goes on"
        assert len(client.get("/v1/jobs").json()["jobs"]) == 1, "the refused job is nowhere"
        stalled = Upload(client)
        began = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        assert service.wait() == 0
        assert DRAIN - 0.5 < time.monotonic() - began < DRAIN + 60, "a client that stalls does not hold up the end"
        stalled.socket.close()
