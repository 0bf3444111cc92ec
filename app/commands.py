"""The service's commands, serve to docs. An entry point in pyproject.toml adds them to lejepa-med.

This module needs nothing of the extra 'serve', so that each command can say what to install.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliApp, CliPositionalArg, CliSubCommand

from data_adapters.errors import MissingExtraError, require
from lejepa_med.config import Section
from lejepa_med.errors import UserError

DATABASE = ("fastapi", "sqlalchemy", "alembic", "httpx")
SERVER = (*DATABASE, "uvicorn", "python_multipart", "prometheus_client", "structlog")
DATA_DIR = "data directory of the service; None: LEJEPA_DATA_DIR, or ./lejepa-data as serve makes it beside ./runs"


def _require(modules: tuple[str, ...]) -> None:
    """Check that the extra is installed.

    Raises:
        MissingExtraError: it is not; names the command that installs it.
    """
    for module in modules:
        try:
            require(module, extra="serve")
        except MissingExtraError as error:
            raise MissingExtraError(
                f"This command needs the Python package '{module}', which cannot be imported.", remedy=error.remedy
            ) from error


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
        _require(SERVER)
        from app.main import run

        run(**_given(self))


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
        _require(SERVER)
        from app.worker import run

        run(**_given(self))


class BackupCommand(Section):
    """Save the service's data directory to one file, also while the service runs."""

    out: CliPositionalArg[Path] = Field(description="new .tar file")
    data_dir: Path = Field(description="data directory of the service")

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(DATABASE)
        from app.store.backup import backup

        saved = backup(self.out, data=self.data_dir)
        print(f"wrote {self.out}: {saved.files:,} files, {saved.bytes / 1e6:,.1f} MB")


class RestoreCommand(Section):
    """Fill a new or empty data directory from a backup, after all its checksums have been compared."""

    backup: CliPositionalArg[Path] = Field(description=".tar file of: lejepa-med backup")
    data_dir: Path = Field(description="new or empty folder")

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(DATABASE)
        from app.store.backup import restore

        found = restore(self.backup, data=self.data_dir)
        print(f"restored {found.files:,} files, {found.bytes / 1e6:,.1f} MB to {self.data_dir}")


def _given(command: ServeCommand | WorkCommand) -> dict[str, Any]:
    """Return the settings that were given; the others come from LEJEPA_ variables."""
    return {"runs_dir": command.runs, **command.model_dump(exclude={"runs"}, exclude_unset=True)}


class CreateKeyCommand(Section):
    """Make a key and print it, this once: only a hash of it is kept. The database is that of LEJEPA_DATABASE_URL."""

    name: CliPositionalArg[str] = Field(description="whose key it is, such as pacs-gateway")
    scopes: list[str] = Field(description="embed, probe, admin, or several with commas; admin includes the others")
    expires_days: float | None = Field(default=None, gt=0, le=36_500, description="None: it does not expire")
    data_dir: Path | None = Field(default=None, description=DATA_DIR)

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(DATABASE)
        from app.api.keys import create

        key, where = create(name=self.name, scopes=self.scopes, days=self.expires_days, data_dir=self.data_dir)
        print(key)
        note = f"The key is shown this once; its hash is in {where}. Clients send it as 'Authorization: Bearer KEY'."
        print(note, file=sys.stderr)


class ListKeysCommand(Section):
    """Show all keys without their secrets: id, name, scopes, when they were made, used, expire or were revoked."""

    data_dir: Path | None = Field(default=None, description=DATA_DIR)

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(DATABASE)
        from app.api.keys import listed

        rows = listed(data_dir=self.data_dir)
        heads = ("id", "name", "scopes", "created", "last used", "expires", "revoked")
        table: list[tuple[str, ...]] = [heads]
        for row in rows:
            times = (_when(at) for at in (row.created, row.last_used, row.expires, row.revoked))
            table.append((row.id, row.name, ",".join(row.scopes), *times))
        widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
        for line in table:
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


class RevokeKeyCommand(Section):
    """End a key; a running service refuses it within a second."""

    id: CliPositionalArg[str] = Field(description="id of the key, see list")
    data_dir: Path | None = Field(default=None, description=DATA_DIR)

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(DATABASE)
        from app.api.keys import revoke

        row = revoke(self.id, data_dir=self.data_dir)
        print(f"revoked {row.id} ({row.name})")


class KeyCommand(Section):
    """API keys of the service: create, list, revoke."""

    create: CliSubCommand[CreateKeyCommand]
    list: CliSubCommand[ListKeysCommand]
    revoke: CliSubCommand[RevokeKeyCommand]

    def cli_cmd(self) -> None:
        """Run the chosen command."""
        if self.create is None and self.list is None and self.revoke is None:
            raise UserError(
                "A command is missing.",
                remedy="Use lejepa-med key create, lejepa-med key list or lejepa-med key revoke.",
            )
        CliApp.run_subcommand(self)


class DocsCommand(Section):
    """Build the documentation as a site with search and reference, and serve it on this machine. Needs no network."""

    port: int = Field(default=8001, ge=0, le=65535, description="port on 127.0.0.1; 0 takes a free one")
    out: Path | None = Field(
        default=None, description="folder: write the site to its subfolder site/ for a web server, and do not serve it"
    )

    def cli_cmd(self) -> None:
        """Run the command."""
        _require(SERVER)
        from app.documentation import show

        show(self.out, port=self.port)


def _when(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


COMMANDS: dict[str, type[Section]] = {
    "serve": ServeCommand,
    "work": WorkCommand,
    "backup": BackupCommand,
    "restore": RestoreCommand,
    "key": KeyCommand,
    "docs": DocsCommand,
}
