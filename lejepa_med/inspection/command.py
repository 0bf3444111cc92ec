"""From the arguments of `lejepa-med inspect` to an adapter and a manifest."""

from pathlib import Path
from typing import Any

from rich.console import Console

import data_adapters
from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.archive import open_archive, progress_bar, scan
from lejepa_med.config import PretrainConfig, ViewsConfig
from lejepa_med.errors import UserError
from lejepa_med.inspection.sheet import Sheet, inspect
from lejepa_med.models.folder import INFO, adapter_of, read_info
from lejepa_med.training.device import device_of
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.resolve import create_adapter, fit_to_archive, resolve_machine


def inspect_archive(
    config: PretrainConfig, *, encoder: Path | None = None, n: int, names: bool, console: Console
) -> Sheet:
    """Look through `config.archive`, a folder or a manifest.parquet, with an encoder's preprocessing or a run's to be.

    Args:
        config: the settings of pretrain that were given; modality may be empty where something else tells it.
        encoder: run or encoder folder.
        n: records to show.
        names: show file names.
        console: where the scan is shown.

    Raises:
        UserError: neither modality nor encoder for a folder, settings beside an encoder, or an unreadable archive.
    """
    adapter, manifest = _of_encoder(config, encoder, console) if encoder is not None else _open(config, console)
    with progress_bar(console, "inspect") as bar:
        task = bar.add_task("", total=min(n, len(manifest)))
        return inspect(
            adapter,
            manifest,
            config.out,
            n=n,
            seed=config.train.seed,
            names=names,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _of_encoder(config: PretrainConfig, encoder: Path, console: Console) -> tuple[Adapter, Manifest]:
    """With the preprocessing of an encoder, which has settled everything."""
    if config.modality or config.data.options or config.views.model_fields_set or config.vector.model_fields_set:
        raise UserError(
            "An encoder brings its modality, options, views and vectors along.",
            remedy="Leave out --modality, -o, --views and --vector, or leave out --encoder.",
        )
    folder = encoder if (encoder / INFO).is_file() else encoder / "encoder"
    adapter = adapter_of(read_info(folder))
    if config.archive.suffix == ".parquet":
        return adapter, Manifest.read(config.archive)
    found = scan(adapter, config.archive, **config.data.table(), verify=False, of_encoder=True, console=console)
    return adapter, found.manifest


def _open(config: PretrainConfig, console: Console) -> tuple[Adapter, Manifest]:
    """As a run with these settings would read the archive on this machine: what it rejects is not shown either."""
    manifest = None
    if config.archive.suffix == ".parquet":
        manifest, known = open_archive(config.archive)
        chosen = config.modality or {"data", "views", "vector", "model", "objective"} & config.model_fields_set
        if RunFolder(config.archive.parent).config.is_file() and not chosen:
            return known, manifest  # of a run: fitted, with its own views
        if not config.modality:
            config = _as_scanned(config, manifest.adapter)
    elif not config.modality:
        raise UserError(
            "It is not said how the archive is to be read.",
            remedy=f"Give --modality {'|'.join(data_adapters.names())}, or --encoder RUN.",
        )
    resolved = resolve_machine(config, device=device_of(config))
    if manifest is None:
        manifest = scan(
            create_adapter(resolved),
            config.archive,
            **config.data.table(),
            verify=config.data.verify,
            split=config.data.split,
            console=console,
        ).manifest
    fitted = fit_to_archive(resolved, manifest, given=config, processes=1)
    console.print(f"the views of a run that trains {fitted.course}", soft_wrap=True, highlight=False)
    return fitted.adapter, fitted.manifest


def _as_scanned(config: PretrainConfig, description: dict[str, Any]) -> PretrainConfig:
    """The settings with modality and options of a manifest; options that only followed from its sizes are left open."""
    modality, told = description["adapter"], description["options"]
    sizes = {name: told[name] for name in ViewsConfig.model_fields if name in told}
    usual = data_adapters.create(modality, **sizes).describe()["options"]
    sized = {*sizes, "embed_size"}
    options = {name: value for name, value in told.items() if value != usual.get(name) and name not in sized}
    data = config.data.model_copy(update={"options": {**options, **config.data.options}})
    return config.model_copy(update={"modality": modality, "data": data})
