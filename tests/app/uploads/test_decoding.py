"""Foreign files are read apart: what a bomb, a crash or a slow reader costs, and what comes back."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import data_adapters
from app.core.settings import Settings
from app.encoders.library import Library
from app.uploads.bodies import ReceivedFile
from app.uploads.embedding import Embedding, Result
from app.uploads.file_items import Area, RequestItem, request_items
from app.uploads.sandbox import Sandbox
from data_adapters.base import Adapter, Record
from data_adapters.errors import BadFileError
from harness.bombs import Bomb, bombs
from harness.growth import Growth
from tests.app.helpers import eventually, png

MIB = 1 << 20


class Reader:
    """The way of a file through the service without HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library, self.embedding = Library(settings), Embedding(settings)
        self.embedding.sandbox.warm()

    def results(self, modality: str, path: Path) -> list[Result]:
        _, encoder, batcher = self.library.encoder(modality)
        upload = ReceivedFile(0, path, path.stat().st_size)
        found: list[RequestItem] = request_items(
            encoder.adapter, [upload], Area(), settings=self.settings, sandbox=self.embedding.sandbox
        )
        return list(self.embedding.run(encoder.adapter, batcher, found))

    def close(self) -> None:
        self.embedding.close()
        self.library.close()


@pytest.fixture(scope="module")
def reader(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """With the limits that a service has when nobody sets them."""
    reader = Reader(Settings(runs_dir=runs, data_dir=tmp_path_factory.mktemp("reader"), threads=1))
    yield reader
    reader.close()


@pytest.mark.parametrize("bomb", list(bombs()), ids=lambda bomb: bomb.name.split(".")[0])
def test_bomb(reader: Reader, bomb: Bomb, tmp_path: Path) -> None:
    path = tmp_path / bomb.name
    path.write_bytes(bomb.make())
    with Growth() as growth:
        results = reader.results(bomb.modality, path)
    assert results
    for result in results:
        assert result.problem is not None and result.problem.status == 422, bomb.name
        assert result.problem.remedy
        assert str(tmp_path) not in result.problem.model_dump_json()
    assert growth.bytes < 512 * MIB


# --- what a worker can and cannot do --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One worker that may take five seconds and little memory."""
    settings = Settings(runs_dir=tmp_path_factory.mktemp("box"), threads=1, decode_seconds=5, max_decode_bytes=1 << 29)
    box = Sandbox(settings)
    box.warm()
    yield box
    box.close()


ODD = '''
import os, signal, socket, time
from pathlib import Path
import numpy as np, torch
from data_adapters.base import BaseAdapter, Record, Spec

class Odd(BaseAdapter):
    """Does what the file's content says."""
    name, suffixes = "odd", (".odd",)
    def inspect(self, path, root):
        return [Record(uri=str(path), group="Doe^Jane", meta={"size": [16, 16]})]
    def prepare(self, record):
        out = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        match Path(record.uri).read_text():
            case "crash": os.kill(os.getpid(), signal.SIGSEGV)
            case "hang": time.sleep(60)
            case "memory": np.ones(1 << 29, np.float64)
            case "shape": out = torch.zeros(1, 3, 32, 31, dtype=torch.uint8)
            case "dtype": out = out.to(torch.float64)
            case "empty": out = out[:0]
            case "write": Path(record.uri + ".out").write_text("x")
            case "secret": out[0, 0, 0, 0] = "LEJEPA_SECRET" in os.environ
            case "name": raise ValueError("Doe^Jane " + record.uri)
            case "chatter":
                for name in os.listdir("/proc/self/fd"):
                    try: os.write(int(name), b"\\xff" * 64)
                    except OSError: pass
        return out
'''


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    file = tmp_path_factory.mktemp("plugin") / "odd.py"
    file.write_text(ODD)
    return data_adapters.create(f"{file}:Odd", global_size=32, local_size=32)


def told(path: Path, text: str) -> Record:
    path.write_text(text)
    return Record(uri=str(path), group="g", meta={"size": [16, 16]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crash", "crashes its reader"),
        ("hang", "longer than 5 s"),
        ("memory", "more memory than its size allows (at most 512 MiB)"),
        ("shape", "crashes its reader"),
        ("dtype", "crashes its reader"),
        ("empty", "crashes its reader"),
        ("chatter", "crashes its reader"),
        ("write", "OSError"),
        ("name", "ValueError"),
    ],
)
def test_a_lost_worker_costs_its_own_item(box: Sandbox, odd: Adapter, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadFileError) as caught:
        box.prepare(odd, told(tmp_path / "a.odd", text))
    assert words in caught.value.cause and caught.value.remedy
    assert "Doe" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == len(text), "no byte is written"
    assert box.prepare(odd, told(tmp_path / "b.odd", "")).shape == (1, 3, 32, 32), "the next one is served"


def test_no_secret_of_the_service_and_no_patient_crosses(
    tmp_path: Path, odd: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEJEPA_SECRET", "s")
    box = Sandbox(Settings(runs_dir=tmp_path, threads=1))
    try:
        assert box.prepare(odd, told(tmp_path / "a.odd", "secret")).sum() == 0
        (found,) = box.scan(odd, tmp_path / "a.odd")
        assert isinstance(found, Record) and found.uri == str(tmp_path / "a.odd")
        assert "Doe" not in found.group
    finally:
        box.close()


def test_the_pixels_are_those_of_the_adapter(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    adapter = data_adapters.create("images", global_size=32, local_size=32)
    (record,) = box.scan(adapter, tmp_path / "a.png")
    assert isinstance(record, Record)
    assert torch.equal(box.prepare(adapter, record), adapter.prepare(record))


@pytest.mark.parametrize("text", ["fine", "name", "memory"])
def test_a_lone_file_in_one_go_is_what_its_parts_say(box: Sandbox, odd: Adapter, tmp_path: Path, text: str) -> None:
    told(file := tmp_path / "a.odd", text)
    found, pixels = box.read(odd, file)
    (record,) = box.scan(odd, file)
    assert found == [record] and isinstance(record, Record)
    if text == "fine":
        assert isinstance(pixels, torch.Tensor) and torch.equal(pixels, box.prepare(odd, record))
        return
    with pytest.raises(BadFileError) as caught:
        box.prepare(odd, record)
    assert isinstance(pixels, BadFileError)
    assert (pixels.cause, pixels.remedy) == (caught.value.cause, caught.value.remedy)


@pytest.mark.parametrize("text", ["crash", "shape", "dtype", "empty"])
def test_a_worker_lost_in_one_go_costs_its_own_file(box: Sandbox, odd: Adapter, tmp_path: Path, text: str) -> None:
    told(file := tmp_path / "a.odd", text)
    with pytest.raises(BadFileError, match="crashes its reader"):
        box.read(odd, file)
    assert box.prepare(odd, told(tmp_path / "b.odd", "")).shape == (1, 3, 32, 32), "the next one is served"


def test_only_a_lone_file_is_decoded_before_its_turn(reader: Reader, tmp_path: Path) -> None:
    """Else the pixels of a thousand files would wait in memory."""
    adapter = reader.library.encoder("images")[1].adapter
    uploads = [ReceivedFile(number, tmp_path / f"{number}.png", 1) for number in range(2)]
    for upload in uploads:
        upload.path.write_bytes(png(upload.index))
    for some in (uploads[:1], uploads):
        found = request_items(
            adapter, some, Area(), settings=reader.settings, sandbox=reader.embedding.sandbox, pixels=True
        )
        assert [source.pixels is not None for source in found] == [len(some) == 1] * len(some)


@pytest.mark.slow
def test_a_worker_that_ended_while_it_waited_is_nobodys_fault(odd: Adapter, tmp_path: Path) -> None:
    record = told(tmp_path / "a.odd", "")
    others = set(children(os.getpid()))
    box = Sandbox(Settings(runs_dir=tmp_path, threads=1))
    try:
        box.warm()
        (server,) = set(children(os.getpid())) - others
        (worker,) = children(server)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: Path(f"/proc/{worker}/stat").read_text().split(") ")[1][0] == "Z")
        assert len(box.prepare(odd, record)) == 1
        (worker,) = children(server)
        os.kill(server, signal.SIGKILL)  # which takes its workers with it
        eventually(lambda: not Path(f"/proc/{worker}").exists())
        assert len(box.prepare(odd, record)) == 1
    finally:
        box.close()


@pytest.mark.slow
def test_processes_end_with_the_service(tmp_path: Path) -> None:
    """Even after kill -9, in the middle of a file."""
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "a.odd").write_text("hang")
    code = (
        "import data_adapters; from pathlib import Path; from app.core.settings import Settings; "
        "from app.uploads.sandbox import Sandbox; from data_adapters.base import Record; "
        f"box = Sandbox(Settings(runs_dir=Path({str(tmp_path)!r}), threads=1)); box.warm(); print('warm', flush=True); "
        f"odd = data_adapters.create({str(tmp_path / 'odd.py') + ':Odd'!r}, global_size=32, local_size=32); "
        f"box.prepare(odd, Record(uri={str(tmp_path / 'a.odd')!r}, group='g', meta={{'size': [16, 16]}}))"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None and service.stdout.readline() == "warm\n"
    (server,) = children(service.pid)
    (worker,) = children(server)
    service.kill()
    service.wait()
    service.stdout.close()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (server, worker)))


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]
