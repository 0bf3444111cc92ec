"""Faults of the service in production: what clients were promised, against what became of it.

python -m benchmarks.stress.faults --out benchmarks/results/faults.md
A short run: --kills 6 --cases kills stall
"""

import argparse
import contextlib
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

from benchmarks.hardware import cpu_name, publish
from benchmarks.stress.faults_case import FAKETIME, Case, Skipped, faked
from benchmarks.stress.faults_lab import Lab, Outcome
from harness.encoders import make_runs
from harness.launcher import Launcher
from harness.postgres import postgres

PAGE = """# The service under faults

{date}. {cpu}, {cores} thread(s), load average {load:.1f}. Real processes; every job is {images} labelled
pictures, embedded in steps, and a probe. Accepted: answered 202. Lost: accepted, but at the end without its one probe.
Doubled: a second probe, or a second success. Revived: dead jobs (tries used up) that POST /v1/jobs/ID/retry queued
again. Left: inputs, temporary folders and drafts on the disk after all jobs have ended. Peak: largest resident memory
of one process.

| fault | database | how often | accepted | lost | doubled | revived | left | peak MB | seen |
|---|---|---|---:|---:|---:|---:|---:|---:|---|
{rows}

{notes}
Again with: `python -m benchmarks.stress.faults --kills {kills} --seed {seed}`
"""
TAKEN_OVER = "its worker ended; another one takes it over"


def kills(case: Case, *, count: int, seed: int) -> Outcome:
    """Kill -9 of the service or a worker, at random moments of uploads and jobs; each is started again."""
    rng = random.Random(seed)
    with case.lab(workers=2, job_retries=3) as made:
        end = threading.Event()

        def feed() -> None:
            while not end.is_set():
                if len(made.accepted) < count and _open_jobs(made) < 4:
                    made.send()
                time.sleep(0.2)

        feeders = [threading.Thread(target=feed) for _ in range(2)]
        for feeder in feeders:
            feeder.start()
        hit = {"service": 0, "worker": 0}
        known = 0
        for _ in range(count):
            time.sleep(rng.uniform(0.05, 1.5))
            made.weigh()
            if rng.random() < 0.4:
                hit["service"] += 1
                # A new service needs seconds for its readers: killed before, it accepts nothing that could be lost.
                made.until(lambda before=known: len(made.accepted) > before, seconds=20)  # type: ignore[misc]
                time.sleep(rng.uniform(0, 1.5))
                made.service.end()
                made.service = case.launcher.service()
                known = len(made.accepted)
            else:
                hit["worker"] += 1
                made.workers.pop(rng.randrange(len(made.workers))).end()
                made.workers.append(case.launcher.worker())
        end.set()
        for feeder in feeders:
            feeder.join()
        found = case.outcome(f"{hit['service']} of the service, {hit['worker']} of 2 workers")
        made.settle(found)
        jobs = [made.job(job) for job in made.accepted]
        taken = sum(event["message"] == TAKEN_OVER for job in jobs for event in job["events"])
        attempts = max((job["attempts"] for job in jobs), default=0)
        found.seen = f"{taken} jobs taken over, at most {attempts} attempts"
        return found


def disk_full(case: Case) -> Outcome:
    """The disk of the data directory is full while a job runs and a request arrives; later there is room again."""
    with case.small_disk() as place, case.lab(place, job_retries=1) as made:
        job = made.must_send(160)
        made.until(lambda: made.running(job))
        ballast = place / "ballast"
        _fill(ballast)
        status = made.send()
        # SQLite is on the same disk: there nothing can be noted, and the job waits.
        is_dead = made.until(lambda: _state(made, job) == "dead", seconds=20)
        ballast.unlink()
        made.until(lambda: made.send() == 202)
        found = made.settle(case.outcome("1, in a job"))
        dead = "the job became dead" if is_dead else "the job waited"
        found.seen = f"{dead}; a request meanwhile: {status}"
        return found


def restart(case: Case, *, server: Any) -> Outcome:
    """PostgreSQL stops in the middle of jobs, for five seconds."""
    with case.lab(workers=1) as made:
        first = made.must_send(160)
        for _ in range(3):
            made.must_send()
        made.until(lambda: made.running(first))
        server.stop()
        time.sleep(2.5)
        answer = made.call("GET", f"/v1/jobs/{first}")
        time.sleep(2.5)
        server.start()
        found = made.settle(case.outcome("1, of 5 s, in a job"))
        status = 0 if answer is None else answer.status_code
        found.seen = f"a request meanwhile: {status}; attempts {[made.job(job)['attempts'] for job in made.accepted]}"
        return found


def stall(case: Case, *, count: int) -> Outcome:
    """Clients that send half a request and no more."""
    with case.lab(upload_idle_seconds=5) as made:
        made.must_send()
        made.until(lambda: _open_jobs(made) == 0)  # all is loaded
        before = made.service.memory()
        host, port = made.service.address.removeprefix("http://").split(":")
        sockets = []
        for _ in range(count):
            client = socket.create_connection((host, int(port)))
            head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            client.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 3000000\r\n\r\n" + head + bytes(1_200_000)
            )
            sockets.append(client)
        made.must_send()
        growth = (made.service.memory() - before) / 2**20
        answers = [_status(client) for client in sockets]
        found = made.settle(case.outcome(f"{count} at once"))
        found.seen = f"answers {sorted(set(answers))} after 5 s; {growth:.0f} MB more meanwhile"
        return found


def clock(case: Case) -> Outcome:
    """The wall clock jumps a day ahead and two back in a job; then its worker is killed."""
    with case.lab(workers=2, job_workers=1) as made:
        job = made.must_send(160)
        made.until(lambda: made.running(job))
        for jump in ("+1d", "-1d"):
            case.faketime.write_text(jump)
            time.sleep(2.5)
            made.must_send()
        made.until(lambda: _state(made, job) not in ("queued", "running"))
        events = [event["message"] for event in made.job(job)["events"]]
        late = made.must_send(160)
        made.until(lambda: made.running(late))
        for worker in made.workers:
            worker.end()
        found = made.settle(case.outcome("+1 and -2 days in a job"))
        dates = [datetime.fromisoformat(made.job(sent)["created"]) for sent in made.accepted]
        apart = (max(dates) - min(dates)).total_seconds() / 3600
        taken = events.count(TAKEN_OVER)
        found.seen = f"jobs dated {apart:.0f} h apart; {taken} taken over without a death; then all workers killed"
        case.faketime.write_text("+0")
        return found


def _open_jobs(made: Lab) -> int:
    answer = made.call("GET", "/v1/jobs?limit=1000")
    if answer is None or answer.status_code != 200:
        return 99
    return sum(job["state"] in ("queued", "running") for job in answer.json()["jobs"])


def _state(made: Lab, job: str) -> str:
    return str(made.job(job)["state"])


def _fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def _status(client: socket.socket) -> int:
    client.settimeout(30)
    with client, contextlib.suppress(OSError):
        return int(client.recv(64).split()[1])
    return 0


def main() -> None:
    """Stage the faults and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("kills", "disk", "restart", "stall", "clock")
    parser.add_argument("--cases", nargs="+", choices=names, default=list(names))
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    parser.add_argument("--kills", type=int, default=50, help="of each database")
    parser.add_argument("--clients", type=int, default=40, help="that stall")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[str] = []
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True)))
        runs = make_runs(place, ["images"], rows=0)
        new = stack.enter_context(postgres()) if "postgres" in args.databases else None
        plain = stack.enter_context(Launcher())
        library = next((path for path in FAKETIME if Path(path).exists()), None)
        stages: dict[str, tuple[str, Callable[[Case], Outcome]]] = {
            "kills": ("kill -9", lambda case: kills(case, count=args.kills, seed=args.seed)),
            "disk": ("disk full", disk_full),
            "restart": ("PostgreSQL restarted", lambda case: restart(case, server=new and new.server)),
            "stall": ("client stalls", lambda case: stall(case, count=args.clients)),
            "clock": ("clock jumps", clock),
        }
        for name in args.cases:
            title, run = stages[name]
            launcher = plain
            if name == "clock":
                if library is None:
                    notes.append("Clock jumps: left out, libfaketime is not installed (Debian: faketime).\n")
                    continue
                (place / "clock").write_text("+0")
                launcher = stack.enter_context(Launcher(environment=faked(library, place / "clock")))
            for database in args.databases if name != "restart" else [d for d in args.databases if d == "postgres"]:
                url = new() if database == "postgres" and new is not None else None
                case = Case(title, database, url, launcher, runs, place / f"{name}-{database}")
                try:
                    found = run(case)
                except Skipped as reason:
                    notes.append(f"{title}, {database}: left out, {reason}.\n")
                    continue
                rows.append(_row(found))
                print(rows[-1], flush=True)
    hardware = {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "date": date.today()}
    given = {"kills": args.kills, "seed": args.seed, "images": "40 to 160"}
    publish(PAGE.format(rows="\n".join(rows), notes="\n".join(notes), **hardware, **given), args.out)


def _row(found: Outcome) -> str:
    return (
        f"| {found.case} | {found.database} | {found.faults} | {found.accepted} | {found.lost} | {found.doubled} | "
        f"{found.revived} | {found.left} | {found.peak_mb:.0f} | {found.seen} |"
    )


if __name__ == "__main__":
    main()
