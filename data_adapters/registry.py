"""The one switchboard of modalities: built-ins, installed plug-ins, `package.module:Class` and `./file.py:Class`."""

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_adapters.base import Adapter, BaseAdapter
from data_adapters.errors import UserError

BUILT_IN = {
    "mri": "data_adapters.mri.adapter:MRIAdapter",
    "mri3d": "data_adapters.mri.cube_adapter:MRI3DAdapter",
    "histology": "data_adapters.histology.adapter:HistologyAdapter",
    "galaxy": "data_adapters.galaxy.adapter:GalaxyAdapter",
    "images": "data_adapters.images.adapter:ImagesAdapter",
}
ENTRY_POINT_GROUP = "lejepa_med.adapters"


def names() -> list[str]:
    """Built-in modalities and those of installed plug-ins."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load_class(name: str) -> type[BaseAdapter]:
    """The adapter class for a name, `package.module:Class` or `./file.py:Class`.

    Raises:
        UserError: nothing is found under that name.
    """
    target = BUILT_IN.get(name)
    if target is None:
        found = [point.value for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
        target = found[0] if found else name
    module_name, _, class_name = target.rpartition(":")
    if not module_name:
        raise UserError(
            f"There is no modality '{name}'.",
            remedy=f"Use one of {', '.join(names())}, or 'package.module:Class', or './file.py:Class'.",
        )
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        loaded = getattr(module, class_name)
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"The adapter '{target}' cannot be loaded: {error}.",
            remedy=f"Correct what this shows: python -c 'import {module_name}'"
            if not module_name.endswith(".py")
            else f"Correct what this shows: python {module_name}; the class must be called {class_name}.",
        ) from error
    return loaded  # type: ignore[no-any-return]


def _load_file(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lejepa_med_plugin_{file.stem}", file.resolve())
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no Python file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def create(name: str, **options: Any) -> Adapter:
    """An adapter by name with its options.

    Raises:
        UserError: unknown name, or options that the adapter does not accept.
    """
    cls = load_class(name)
    try:
        adapter = cls(**options)
    except ValidationError as error:
        issues = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"Options of the modality '{name}' are not accepted: {issues}.",
            remedy=f"Its options are: {', '.join(cls.Options.model_fields)}.",
        ) from error
    adapter.reference = name
    return adapter


def from_description(description: dict[str, Any], *, local: dict[str, Any] | None = None) -> Adapter:
    """The adapter that `describe()` told of; `local` are its `local_options()`, on the same machine.

    Raises:
        UserError: its pipeline version differs, so it would give other pixels than the encoder was trained on.
    """
    cls = load_class(description["adapter"])
    if cls.version != description["version"]:
        raise UserError(
            f"This encoder was made with version {description['version']} of the '{description['adapter']}' adapter; "
            f"this installation has version {cls.version}, which gives other pixels.",
            remedy="Install the lejepa-med release named in the encoder's lejepa_med.json, or pretrain again.",
        )
    if isinstance(description["options"].get("augment"), str):  # whoever wrote it, no file of this machine is read
        raise UserError(
            "The description of this adapter names a pipeline file instead of holding its content.",
            remedy="Use the encoder folder as pretrain wrote it.",
        )
    return create(description["adapter"], **description["options"], **(local or {}))
