"""Processes that read foreign files: what they send is judged as hostile, and time is counted fairly."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import data_adapters
from data_adapters.readers.frames import LENGTHS, MAX_HEADER, BrokenFrameError, Channel
from data_adapters.readers.records import Checked
from data_adapters.record import Rejected
from data_adapters.scan import scan_archive
from data_adapters.scan.batches import RESULT
from tests.conftest import write_pictures


def test_frames_come_as_they_were_sent() -> None:
    ours, theirs = socket.socketpair()
    sent = [
        ({"a": 1}, None),
        ({}, b"x"),
        ({"text": "\u00e9" * 40_000}, bytes(range(256)) * 2000),
        ({"end": True}, None),
    ]
    with ours, theirs:
        sender = Channel(theirs)
        thread = threading.Thread(target=lambda: [sender.send(header, body) for header, body in sent])
        thread.start()
        channel = Channel(ours)
        for header, body in sent:
            frame = channel.receive(max_body=1 << 20, seconds=20)
            assert (frame.header, frame.body) == (header, body)
        thread.join()
        assert not channel.has_input()
        sender.send({})
        assert channel.has_input()


@pytest.mark.parametrize(
    "sent",
    [
        LENGTHS.pack(MAX_HEADER + 1, 0),
        LENGTHS.pack(2, 1 << 40) + b"{}",
        LENGTHS.pack(2, 0) + b"[]",
        LENGTHS.pack(3, 0) + b"{]}",
        LENGTHS.pack(100_000, 0) + b"[" * 100_000,
        LENGTHS.pack(9, 0) + b"{",
        b"\x80\x05",
    ],
)
def test_broken_frames(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenFrameError):
            Channel(ours).receive(max_body=1 << 20, seconds=5)


def test_a_frame_that_trickles_is_late() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ended = threading.Event()

        def trickle() -> None:
            for byte in LENGTHS.pack(1000, 0) + b" " * 1000:
                if ended.wait(0.02):
                    return
                theirs.sendall(bytes([byte]))

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                Channel(ours).receive(seconds=0.3)
        finally:
            ended.set()
            thread.join()


WAITS = """
import socket, sys
from data_adapters.readers.frames import Channel

channel = Channel(socket.socket(fileno=int(sys.argv[1])))
channel.send({"waits": True})
print(channel.receive(seconds=3).header)
"""


def test_time_in_which_everything_was_stopped_does_not_count() -> None:
    """As after Ctrl-Z, or when the machine slept."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", WAITS, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True)
        channel = Channel(ours)
        channel.receive(seconds=60)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        process.send_signal(signal.SIGCONT)
        channel.send({"late": True})
        assert process.communicate(timeout=60)[0] == "{'late': True}\n"


def test_results_of_a_check_come_back() -> None:
    for result in (
        Checked({"id": "12", "label": None, "samples": 3}, "f"),
        Rejected(uri="a/b.png", reason="broken", remedy="again"),
    ):
        assert RESULT.validate_python(json.loads(json.dumps(vars(result)))) == result


@pytest.mark.parametrize(
    "result", [None, 1, [1], "a", {}, {"row": {"id": [1]}, "facts": ""}, {"uri": "a", "reason": 1}]
)
def test_anything_else_is_no_result(result: object) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RESULT.validate_python(result)


EVIL = """
import os, pickle, socket, sys
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.readers.frames import Channel

class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)

class Evil(ImagesAdapter):
    \"\"\"Speaks in its process's place, as a reader that was taken over would.\"\"\"

    def inspect(self, path, root):
        self._say(path.name, "inspect")
        return super().inspect(path, root)

    def verify(self, record):
        self._say(record.uri[-8:], "verify")
        super().verify(record)

    def _say(self, name, where):
        sock = socket.socket(fileno=os.dup(int(sys.argv[1])))
        if (name, where) == ("0001.png", "inspect"):
            Channel(sock).send({}, b'[{"uri": 7}]')
        elif (name, where) == ("0002.png", "verify"):
            Channel(sock).send({"result": {"row": {"id": []}, "facts": ""}})
        elif (name, where) == ("0003.png", "verify"):
            sock.sendall(pickle.dumps([Bomb()]))
        elif (name, where) == ("0004.png", "verify"):
            Channel(sock).send({"end": True})
        else:
            return
        os._exit(0)
"""


def test_what_a_taken_over_process_says_costs_its_file_and_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "a", count=6)
    found = scan_archive(data_adapters.create("./evil.py:Evil"), Path("a"), workers=1)
    assert [Path(one.uri).name for one in found.refused] == ["0001.png", "0002.png", "0003.png", "0004.png"]
    assert all(one.reason.startswith("crashes its reader") for one in found.refused) and len(found) == 2
    assert not Path("unpickled").exists()
