"""The test's own app behind a real uvicorn on loopback, and a proxy that breaks connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of a server for `app`, whose lifespan has begun elsewhere."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Proxy:
    """Passes connections on to a server; `limits` are the bytes of the answer after which each next one is cut."""

    def __init__(self, url: str) -> None:
        self.limits: list[int] = []
        self.connections = 0
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            limit = self.limits.pop(0) if self.limits else None
            threading.Thread(target=self._connect, args=(client, limit), daemon=True).start()

    def _connect(self, client: socket.socket, limit: int | None) -> None:
        server = socket.create_connection(self._target)
        threading.Thread(target=self._pass, args=(client, server, None), daemon=True).start()
        self._pass(server, client, limit)
        for one in (client, server):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        try:
            while piece := source.recv(1 << 14):
                target.sendall(piece if limit is None else piece[:limit])
                if limit is not None:
                    limit -= len(piece)
                    if limit <= 0:
                        return
        except OSError:
            return
