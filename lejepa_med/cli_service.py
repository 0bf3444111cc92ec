"""Commands about the service's state: backup and restore."""

from importlib import import_module
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.config import Section


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
        found = import_module("app.restore").restore(self.backup, data=self.data_dir)
        print(f"restored {found.files:,} files, {found.bytes / 1e6:,.1f} MB to {self.data_dir}")
