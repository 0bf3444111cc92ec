"""An archive on disk becomes records, pixels and views. Knows file formats and domains; never losses or HTTP."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_adapters.base import Adapter, AdapterOptions, BaseAdapter, Record, Rejected, Spec
    from data_adapters.errors import BadFileError, MissingExtraError, UserError
    from data_adapters.registry import create, from_description, names

__all__ = [
    "Adapter",
    "AdapterOptions",
    "BadFileError",
    "BaseAdapter",
    "MissingExtraError",
    "Record",
    "Rejected",
    "Spec",
    "UserError",
    "create",
    "from_description",
    "names",
]

_HOME = {
    **dict.fromkeys(("Adapter", "AdapterOptions", "BaseAdapter", "Record", "Rejected", "Spec"), "data_adapters.base"),
    **dict.fromkeys(("BadFileError", "MissingExtraError", "UserError"), "data_adapters.errors"),
    **dict.fromkeys(("create", "from_description", "names"), "data_adapters.registry"),
}


def __getattr__(name: str) -> Any:
    # on demand: data_adapters.base imports torch, and `lejepa-med --help` must answer at once
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'data_adapters' has no attribute '{name}'")
