"""Commands about the service: serve, work, backup, restore. The package does not depend on it: it is found by name."""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.config import Section

SERVE_MODULES = (
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "python_multipart",
    "prometheus_client",
    "structlog",
)


class ServeCommand(Section):
    """Serve the encoders and embedding tables below a folder over REST."""

    runs: CliPositionalArg[Path] = Field(description="folder that holds run folders")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    data_dir: Path | None = Field(default=None, description="folder for probes, jobs and uploads; None: beside runs")
    database_url: str | None = Field(default=None, description="postgresql:// URL; None: SQLite in data-dir")
    allow_code: bool = Field(default=False, description="run Python files that lie in runs: own backbones and adapters")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, or auto: the GPU where there is one")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the encoder; None: as cores are free")
    job_workers: int = Field(default=1, ge=0, description="jobs at the same time; 0: lejepa-med work runs them")
    auth: Literal["auto", "on", "off"] = Field(
        default="auto", description="whether requests need an API key; auto: once one was made (lejepa-med key create)"
    )
    allow_unauthenticated: bool = Field(
        default=False, description="permit an address other than loopback although nobody is asked for a key"
    )
    log_format: Literal["text", "json"] | None = Field(
        default=None, description="text, or json with one object a line; None: text on a terminal, json elsewhere"
    )
    drain_seconds: float = Field(default=20, ge=0, description="how long requests may take to end after SIGTERM")

    def cli_cmd(self) -> None:
        """Run the command."""
        _run("app.main", self)


class WorkCommand(Section):
    """Run jobs of a service in a process of their own; start as many as the machines can carry."""

    runs: CliPositionalArg[Path] = Field(description="folder that holds run folders, as for serve")
    data_dir: Path | None = Field(default=None, description="data directory of the service; None: beside runs")
    database_url: str | None = Field(default=None, description="postgresql:// URL of the service; None: SQLite")
    allow_code: bool = Field(default=False, description="run Python files that lie in runs: own backbones and adapters")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, or auto: the GPU where there is one")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the encoder; None: as cores are free")
    job_workers: int = Field(default=1, ge=1, description="jobs that run at the same time in this process")
    log_format: Literal["text", "json"] | None = Field(
        default=None, description="text, or json with one object a line; None: text on a terminal, json elsewhere"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        _run("app.worker", self)


class BackupCommand(Section):
    """Save the service's data directory to one file, also while the service runs."""

    out: CliPositionalArg[Path] = Field(description="new .tar file")
    data_dir: Path = Field(description="data directory of the service")

    def cli_cmd(self) -> None:
        """Run the command."""
        # by name: the method's package must not depend on the service; only the entry points know both
        saved = import_module("app.backup").backup(self.out, data=self.data_dir)
        print(f"wrote {self.out}: {saved.files:,} files, {saved.bytes / 1e6:,.1f} MB")


class RestoreCommand(Section):
    """Fill a new or empty data directory from a backup, after all its checksums have been compared."""

    backup: CliPositionalArg[Path] = Field(description=".tar file of: lejepa-med backup")
    data_dir: Path = Field(description="new or empty folder")

    def cli_cmd(self) -> None:
        """Run the command."""
        found = import_module("app.backup").restore(self.backup, data=self.data_dir)
        print(f"restored {found.files:,} files, {found.bytes / 1e6:,.1f} MB to {self.data_dir}")


def _run(module: str, command: Any) -> None:
    from data_adapters.errors import require

    for needed in SERVE_MODULES:
        require(needed, extra="serve")
    import_module(module).run(runs_dir=command.runs, **command.model_dump(exclude={"runs"}, exclude_unset=True))
