"""Files and folders that are either whole or absent, whatever instant the process is killed at."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_adapters.errors import naming


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(file: Path, text: str) -> None:
    """Write a text file under a temporary name, sync it, then rename; a failure leaves the old file and no draft."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    try:
        with naming(file), draft.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(file.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A draft folder that becomes `target` when the block succeeds, and vanishes when it fails.

    An older `target` is moved aside first and removed last. A kill between the two renames leaves the older one as
    `.NAME.previous`; `recover` brings it back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        with naming(target):
            yield draft
            for file in sorted(path for path in draft.rglob("*") if path.is_file()):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_folder(draft)
        previous = target.with_name(f".{target.name}.previous")
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(target, previous)
        os.rename(draft, target)
        sync_folder(target.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def recover(target: Path) -> None:
    """Undo an interrupted replacement by `new_folder` and remove drafts that a killed process left."""
    previous = target.with_name(f".{target.name}.previous")
    if previous.is_dir():
        if target.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, target)
    for draft in target.parent.glob(f".{target.name}.*.draft"):
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
