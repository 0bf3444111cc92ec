"""By what a scan knows the adapter, the machine and its own earlier work."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter, BaseAdapter
from data_adapters.errors import UserError
from data_adapters.identity import pseudonym
from data_adapters.registry import load_class

FORMAT = 1  # of the journal


def rebuildable(adapter: Adapter) -> bool:
    """Whether a new process can build the adapter from its description; a class inside a function, say, cannot."""
    reference = str(adapter.describe().get("adapter", ""))
    if ".py:" in reference:
        return Path(reference.rpartition(":")[0]).is_file()
    try:
        return load_class(reference) is type(adapter)
    except UserError:
        return False


def local_options(adapter: Adapter) -> dict[str, Any]:
    """Options of this machine that the description leaves out."""
    return adapter.local_options() if isinstance(adapter, BaseAdapter) else {}


def identity(adapter: Adapter, root: Path) -> str:
    """What a journal must agree in: description and code of the adapter, root, salt and release."""
    try:
        release = importlib.metadata.version("lejepa-med")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        release = ""
    local = {name: str(value) for name, value in local_options(adapter).items()}
    parts = [FORMAT, release, adapter.describe(), local, str(root), pseudonym("journal", ""), _code(type(adapter))]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _code(kind: type) -> str:
    """A hash of the Python files that decide about a file: the adapter's and those beside it, and our own."""
    own = Path(__file__).parent.parent
    files = {*own.glob("*.py"), *own.glob("scan/*.py")}
    source = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if source is not None:
        inside = Path(source).with_name("__init__.py").is_file()
        files |= set(Path(source).parent.glob("*.py")) if inside else {Path(source)}
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
