"""The demo's steps: labels and scores, the service process, and (slow) the whole path twice."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from data_adapters.errors import UserError
from data_adapters.manifest import SCHEMA, Manifest
from examples.demo import archives, run, service
from examples.demo.probing import Item, draw_labels, explained, items_of
from lejepa_med.client import Client


def manifest_of(rows: list[tuple[str, str, str]]) -> Manifest:
    """Rows of (label, split, group)."""
    full = [
        {**dict.fromkeys(SCHEMA.names), "id": f"i{n}", "path": f"{n}.fits", "label": c or None, "split": s, "group": g}
        for n, (c, s, g) in enumerate(rows)
    ]
    return Manifest(root=Path("."), adapter={}, rows=pa.Table.from_pylist(full, schema=SCHEMA))


def ids(count: int) -> set[str]:
    return {f"i{n}" for n in range(count)}


def test_a_probe_learns_from_what_is_embedded_labelled_and_not_held_out() -> None:
    rows = [("a", "train", "g1")] * 3 + [("b", "", "g2")] * 3 + [("a", "val", "g3"), ("b", "test", "g3")]
    rows += [("alone", "train", "g1"), ("", "train", "g1"), ("b", "train", "g2")]
    items = items_of(manifest_of(rows), embedded=ids(10))  # the last row could not be embedded
    assert [item.id for item in items] == [f"i{n}" for n in range(6)]
    assert Counter(item.label for item in items) == {"a": 3, "b": 3}


def test_one_class_is_nothing_to_probe() -> None:
    rows = [("a", "train", "g1")] * 3 + [("b", "train", "g1"), ("b", "val", "g2")]
    assert items_of(manifest_of(rows), embedded=ids(5)) == []


def test_labels_are_drawn_evenly_and_by_seed() -> None:
    items = [Item(id=str(n), label="abc"[n % 3]) for n in range(60)]
    drawn = draw_labels(items, per_class=5, seed=1)
    assert Counter(item.label for item in drawn) == {"a": 5, "b": 5, "c": 5}
    assert drawn == draw_labels(items, per_class=5, seed=1) != draw_labels(items, per_class=5, seed=2)
    assert len(draw_labels(items, per_class=50, seed=1)) == 60


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that answers as the service does where a request cannot be done."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"detail": "No such archive.", "remedy": "GET /v1/archives lists them."}).encode()
            self.send_response(404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_problem_of_the_service_is_told_with_its_remedy(refusing: str) -> None:
    with pytest.raises(UserError, match=r"404: No such archive. GET /v1/archives lists them."), explained():
        Client(refusing).archive("none")


def test_a_dead_service_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="stopped answering"), explained():
            Client(f"http://127.0.0.1:{unused.getsockname()[1]}", retries=0).archive("any")


def test_a_busy_port_is_passed_over() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert service.free_port(port) > port


def remember(home: Path, pid: int, runs: str) -> None:
    (home / "service.json").write_text(json.dumps({"pid": pid, "port": 1, "runs": runs}))


def test_the_own_service_is_ended_and_no_other_process(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    remember(tmp_path, os.getpid(), runs)  # a reused process id: this test, which serves nothing
    assert service.previous(tmp_path) is None and not service.stop(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "serve", runs])
    remember(tmp_path, sleeper.pid, runs)
    assert service.previous(tmp_path) is not None
    assert service.stop(tmp_path)
    assert service.previous(tmp_path) is None and not (tmp_path / "service.json").exists()


@pytest.mark.slow
def test_a_service_that_cannot_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "service").write_text("a file where the data directory should be")
    with pytest.raises(UserError, match=r"service ended with status .*service\.log"):
        service.start(tmp_path, tmp_path / "runs", port=18000)


def test_archives_have_places_of_their_own(tmp_path: Path) -> None:
    place = run.Place.of(tmp_path, "galaxy", None)
    assert place.home == tmp_path / "galaxy" and place.run.name == "galaxy"
    one, two = (run.Place.of(tmp_path, "mri", tmp_path / side / "scans") for side in "ab")
    assert len({place.home, one.home, two.home}) == 3
    assert run.Place.of(tmp_path, "./satellite.py:Adapter", None).home == tmp_path / "satellite"


def test_a_folder_that_no_demo_made_is_not_touched(tmp_path: Path) -> None:
    own = tmp_path / "galaxy"
    own.mkdir()
    (own / "thesis.txt").write_text("precious")
    for extra in ([], ["--fresh"]):
        assert run.main(["--out", str(tmp_path), *extra]) == 1
    assert (own / "thesis.txt").read_text() == "precious"


def test_a_missing_archive_and_an_unknown_modality_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--out", str(tmp_path), "--archive", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().out
    assert run.main(["--out", str(tmp_path), "--modality", "ultrasound"]) == 1
    assert "ARCHIVE=" in capsys.readouterr().out


def test_a_failing_command_stops_the_demo(tmp_path: Path) -> None:
    demo = run.Demo(run.Place.of(tmp_path, "galaxy", None), minutes=1, port=1, console=Console())
    with pytest.raises(UserError, match=r"'lejepa-med scan' ended with status 2.*--fresh"):
        demo.call(["scan", str(tmp_path / "none"), "--modality", "galaxy", "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_the_whole_demo_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = run.Place.of(tmp_path, "galaxy", None)
    place.claim(fresh=False)
    archives.make("galaxy", place.home / "archive", n=100)
    arguments = ["--out", str(tmp_path), "--minutes", "0.05", "--port", "18100"]
    try:
        assert run.main(arguments) == 0
        first = capfd.readouterr().out
        assert "random weights" in first and "balanced accuracy by number of labels per class" in first
        assert (place.comparison / "compare.html").is_file()
        assert re.search(r"trained on \d+ labels of 4 classes; cross-validated balanced accuracy 0\.\d\d", first)
        address = re.search(r"The service is up: (http://\S+)", first)
        assert address is not None
        running = service.previous(place.home)
        assert running is not None and running.url == address[1]
        weights = (place.run / "encoder" / "model.safetensors").stat().st_mtime_ns

        assert run.main(arguments) == 0
        second = capfd.readouterr().out
        assert second.count("kept from an earlier demo") == 3
        assert "the service of an earlier demo was stopped" in second
        assert (place.run / "encoder" / "model.safetensors").stat().st_mtime_ns == weights
        again = service.previous(place.home)
        assert again is not None and again.pid != running.pid and again.port == running.port
    finally:
        service.stop(place.home)
