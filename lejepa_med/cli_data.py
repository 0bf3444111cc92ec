"""Commands about the archive and the installation: split and doctor. Heavy imports wait for the command."""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from lejepa_med.config import Section
from lejepa_med.errors import UserError


class SplitCommand(Section):
    """Divide an archive into splits: no group and no equal image on two sides, and the same mix of labels on each.

    Writes a catalogue (path, item, group, label, split) for --catalog of scan, --data.catalog of pretrain and for
    probe, and a receipt beside it.
    """

    source: CliPositionalArg[Path] = Field(description="manifest.parquet of scan, or a folder with images")
    out: Path = Field(description="CSV file to write; the receipt is FILE.receipt.json")
    fractions: dict[str, float] = Field(
        default={"train": 0.7, "val": 0.15, "test": 0.15}, description="names and parts, such as train=.8 test=.2"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order among groups of equal size")
    modality: str | None = Field(default=None, description="of a folder, which is scanned first")
    catalog: Path | None = Field(default=None, description="of a folder: CSV or Parquet with group and label")
    options: dict[str, Any] = Field(default={}, description="of a folder: options of the modality")
    overwrite: bool = Field(default=False, description="replace a split that is there")

    def cli_cmd(self) -> None:
        """Run the command."""
        from data_adapters.manifest import Manifest
        from lejepa_med.data.split_files import check_target, receipt_file, write_split

        check_target(self.out, self.fractions, overwrite=self.overwrite)
        if self.source.suffix == ".parquet":
            if self.modality or self.catalog or self.options:
                cause = (
                    "--modality, --catalog and --options belong to a folder; a manifest has been scanned with its own."
                )
                raise UserError(cause, remedy="Leave them out, or split the folder itself with them.")
            manifest = Manifest.read(self.source)
        else:
            manifest = self._scanned()
        receipt = write_split(manifest, self.out, fractions=self.fractions, seed=self.seed, overwrite=self.overwrite)
        for name, part in receipt["splits"].items():
            labels = ", ".join(f"{label} {count:,}" for label, count in part["labels"].items())
            share = f"{part['fraction']:.1%}, wanted {part['wanted']:.1%}"
            print(f"{name}: {part['items']:,} items in {part['groups']:,} groups ({share}): {labels}")
            if abs(part["fraction"] - part["wanted"]) > 0.05:
                print(f"  {name} is off by more than 5 points: some groups are too large to be divided so")
        repaired = receipt["repaired"]
        if repaired is not None:
            groups = f"{repaired['groups']:,} groups ({repaired['images']:,} images)"
            print(
                f"repaired: in the manifest's own split, {groups} and {repaired['copies']:,} equal images lay in "
                "several splits; each now lies in one"
            )
        print(f"wrote {self.out} and {receipt_file(self.out)}; no group and no equal image lies in two splits")

    def _scanned(self) -> Any:
        from rich.console import Console

        import data_adapters
        from lejepa_med.training.archive import scan

        if self.modality is None:
            raise UserError(f"{self.source} is no manifest.parquet.", remedy="To split a folder, give its --modality.")
        adapter = data_adapters.create(self.modality, **self.options)
        return scan(adapter, self.source, catalog=self.catalog, console=Console(stderr=True)).manifest


class DoctorCommand(Section):
    """Show what this installation can do: versions, devices, readers of each modality, disk and salt.

    Exit code 1 where the core, or the modality that was asked for, is broken. It asks no network.
    """

    modality: str | None = Field(default=None, description="check this modality alone")

    def cli_cmd(self) -> None:
        """Run the command."""
        from lejepa_med.doctor import examine, failed

        marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING", "broken": "BROKEN "}
        findings = []
        for found in examine(self.modality):
            findings.append(found)
            remedy = f"\n{' ' * 19}-> {found.remedy}" if found.remedy else ""
            print(f"{marks[found.state]} {found.section:<10} {found.name}: {found.detail}{remedy}", flush=True)
        if failed(findings, modality=self.modality):
            sys.exit(1)
