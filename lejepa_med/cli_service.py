"""Commands about the service: serve and work. The method's package does not depend on it, so it is found by name."""

from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.config import Section


class ServeCommand(Section):
    """Serve the encoders and embedding tables below a folder over REST."""

    runs: CliPositionalArg[Path] = Field(description="folder that holds run folders")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    data_dir: Path | None = Field(default=None, description="folder for probes, jobs and uploads; None: beside runs")
    database_url: str | None = Field(default=None, description="postgresql:// URL; None: SQLite in data-dir")
    device: str = Field(default="cpu", description="cpu or cuda")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the encoder; None: all cores")
    job_workers: int = Field(default=1, ge=0, description="jobs at the same time; 0: lejepa-med work runs them")
    allow_unauthenticated: bool = Field(default=False, description="permit an address other than loopback")

    def cli_cmd(self) -> None:
        """Run the command."""
        _run("app.main", self)


class WorkCommand(Section):
    """Run jobs of a service in a process of their own; start as many as the machines can carry."""

    runs: CliPositionalArg[Path] = Field(description="folder that holds run folders, as for serve")
    data_dir: Path | None = Field(default=None, description="data directory of the service; None: beside runs")
    database_url: str | None = Field(default=None, description="postgresql:// URL of the service; None: SQLite")
    device: str = Field(default="cpu", description="cpu or cuda")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the encoder; None: all cores")
    job_workers: int = Field(default=1, ge=1, description="jobs at the same time, one number for all processes")

    def cli_cmd(self) -> None:
        """Run the command."""
        _run("app.worker", self)


def _run(module: str, command: Any) -> None:
    from data_adapters.errors import require

    for needed in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "dbos", "python_multipart"):
        require(needed, extra="serve")
    import_module(module).run(runs_dir=command.runs, **command.model_dump(exclude={"runs"}, exclude_unset=True))
