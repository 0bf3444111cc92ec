"""Closed-loop clients: each sends one picture, waits for its vector and sends again. Figures as JSON.

python -m benchmarks.serve_load URL PICTURE CLIENTS SECONDS PROCESS DIM

The window opens when every client has had an answer and closes after SECONDS and two answers a client, so that answers
of whole batches are counted with the time that they took. The clients speak HTTP over bare sockets: a general client
such as httpx takes more CPU time for a request than the encoder, on the cores that the servers need.
"""

import asyncio
import json
import os
import re
import secrets
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

LIMIT = 90.0  # seconds; no side is waited for longer


class Load:
    """The clients and what they saw."""

    def __init__(self, url: str, picture: bytes, *, clients: int, seconds: float, process: int, dim: int) -> None:
        self.clients, self.seconds, self.dim = clients, seconds, dim
        self.server = psutil.Process(process)
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        body = head.encode() + picture + f"\r\n--{boundary}--\r\n".encode()
        self.at = urlsplit(url)
        lines = (
            f"POST {self.at.path} HTTP/1.1",
            f"Host: {self.at.netloc}",
            f"Content-Type: multipart/form-data; boundary={boundary}",
            f"Content-Length: {len(body)}",
        )
        self.request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self.answered: set[int] = set()
        self.latencies: list[float] = []
        self.opened = self.closed = self.cpu = 0.0
        self.failed = 0

    async def run(self) -> dict[str, float]:
        """Load until the window closes; figures over the window."""
        await asyncio.wait_for(asyncio.gather(*(self._client(n) for n in range(self.clients))), LIMIT)
        ordered = sorted(self.latencies)
        span = self.closed - self.opened
        return {
            "rate": len(ordered) / span,
            "p50": ordered[len(ordered) // 2],
            "p95": ordered[int(len(ordered) * 0.95)],
            "cpu": self.cpu / len(ordered),
            "client_cpu": time.process_time() / len(ordered),
            "failed": self.failed,
            "load": os.getloadavg()[0],
        }

    async def _client(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self.at.hostname, self.at.port)
        while not self.closed:
            began = time.perf_counter()
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            answer = await reader.readexactly(int(length[1])) if length else b""
            now = time.perf_counter()
            if head.split(b" ", 2)[1] != b"200":
                self.failed += 1
                if self.failed > 20 and not self.opened:
                    raise ValueError(f"refused: {head.splitlines()[0].decode()}")
                await asyncio.sleep(0.05)
                continue
            if not self.answered and answer.count(b",") < self.dim - 1:
                raise ValueError("the answer holds no vector")
            self._count(number, now - began, now)
        writer.close()

    def _count(self, number: int, latency: float, now: float) -> None:
        if self.closed:
            return
        if self.opened:
            self.latencies.append(latency)
            if now - self.opened >= self.seconds and len(self.latencies) >= 2 * self.clients:
                self.closed = now
                self.cpu = self._server_cpu() - self.cpu
            return
        self.answered.add(number)
        if len(self.answered) == self.clients:
            self.opened, self.cpu = now, self._server_cpu()

    def _server_cpu(self) -> float:
        processes = [self.server, *self.server.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    url, picture, clients, seconds, process, dim = sys.argv[1:]
    load = Load(
        url,
        Path(picture).read_bytes(),
        clients=int(clients),
        seconds=float(seconds),
        process=int(process),
        dim=int(dim),
    )
    print(json.dumps(asyncio.run(load.run())))
