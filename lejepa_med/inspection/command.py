"""From the arguments of `lejepa-med inspect` to an adapter and a manifest."""

from pathlib import Path
from typing import Any

from rich.console import Console

import data_adapters
from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.errors import UserError
from lejepa_med.inspection.sheet import Sheet, inspect
from lejepa_med.models.folder import INFO, read_info
from lejepa_med.training.archive import open_archive, progress_bar, scan


def inspect_archive(
    archive: Path,
    out: Path,
    *,
    modality: str | None,
    encoder: Path | None,
    options: dict[str, Any],
    catalog: Path | None,
    group_column: str | None = None,
    label_column: str | None = None,
    n: int,
    seed: int,
    names: bool,
    console: Console,
) -> Sheet:
    """Look through `archive`, a folder or a manifest.parquet, with an encoder's preprocessing or a modality's own.

    Raises:
        UserError: neither modality nor encoder for a folder, options beside an encoder, or an unreadable archive.
    """
    if encoder is not None and (modality is not None or options):
        raise UserError(
            "An encoder brings its modality and options along.", remedy="Leave out --modality and --options."
        )
    table = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    adapter, manifest = _open(
        archive, modality=modality, encoder=encoder, options=options, table=table, console=console
    )
    with progress_bar(console, "inspect") as bar:
        task = bar.add_task("", total=min(n, len(manifest)))
        return inspect(
            adapter,
            manifest,
            out,
            n=n,
            seed=seed,
            names=names,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _open(
    archive: Path,
    *,
    modality: str | None,
    encoder: Path | None,
    options: dict[str, Any],
    table: dict[str, Any],
    console: Console,
) -> tuple[Adapter, Manifest]:
    adapter: Adapter | None = None
    if encoder is not None:
        folder = encoder if (encoder / INFO).is_file() else encoder / "encoder"
        adapter = data_adapters.from_description(read_info(folder)["adapter"])
    elif modality is not None:
        adapter = data_adapters.create(modality, **options)
    if archive.suffix == ".parquet":
        if adapter is None:
            manifest, adapter = open_archive(archive)
            return adapter.fit(manifest.records()), manifest
        manifest = Manifest.read(archive)
    elif adapter is None:
        raise UserError(
            "It is not said how the archive is to be read.",
            remedy=f"Give --modality {'|'.join(data_adapters.names())}, or --encoder RUN.",
        )
    else:
        manifest = scan(adapter, archive, verify=False, console=console, **table).manifest
    return (adapter if encoder is not None else adapter.fit(manifest.records())), manifest
