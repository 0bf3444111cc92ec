"""Commands about the service's API keys: create, list, revoke. They work whether the service runs or not."""

import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliApp, CliPositionalArg, CliSubCommand

from lejepa_med.config import Section
from lejepa_med.errors import UserError

DATA_DIR = "data directory of the service; None: LEJEPA_DATA_DIR, or ./lejepa-data as serve makes it beside ./runs"


def _keys() -> Any:
    from data_adapters.errors import require

    for module in ("fastapi", "sqlalchemy", "alembic"):
        require(module, extra="serve")
    # by name: the method's package must not depend on the service
    return import_module("app.keys")


class CreateKeyCommand(Section):
    """Make a key and print it, this once: only a hash of it is kept. The database is that of LEJEPA_DATABASE_URL."""

    name: CliPositionalArg[str] = Field(description="whose key it is, such as pacs-gateway")
    scopes: list[str] = Field(description="embed, probe, admin, or several with commas; admin includes the others")
    expires_days: float | None = Field(default=None, gt=0, le=36_500, description="None: it does not expire")
    data_dir: Path | None = Field(default=None, description=DATA_DIR)

    def cli_cmd(self) -> None:
        """Run the command."""
        given = {"name": self.name, "scopes": self.scopes, "days": self.expires_days, "data_dir": self.data_dir}
        key, where = _keys().create(**given)
        print(key)
        note = f"The key is shown this once; its hash is in {where}. Clients send it as 'Authorization: Bearer KEY'."
        print(note, file=sys.stderr)


class ListKeysCommand(Section):
    """Show all keys without their secrets: id, name, scopes, when they were made, used, expire or were revoked."""

    data_dir: Path | None = Field(default=None, description=DATA_DIR)

    def cli_cmd(self) -> None:
        """Run the command."""
        rows = _keys().listed(data_dir=self.data_dir)
        heads = ("id", "name", "scopes", "created", "last used", "expires", "revoked")
        table = [heads]
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
        row = _keys().revoke(self.id, data_dir=self.data_dir)
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


def _when(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
