"""Files and folders that are either whole or absent, whatever instant the process is killed at."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_adapters.errors import naming


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable against a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a draft path; it replaces `target` when the block succeeds, and is removed when it fails."""
    # ends in .draft, so that a glob for the target's suffix does not find what a killed process left
    draft = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.draft")
    try:
        with naming(target):
            yield draft
            sync(draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    sync(target.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file; a failure leaves the old file and no draft."""
    with new_file(file) as draft:
        draft.write_text(text, encoding="utf-8")


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
            for path in sorted(draft.rglob("*")):
                sync(path)
            sync(draft)
        previous = target.with_name(f".{target.name}.previous")
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(target, previous)
        os.rename(draft, target)
        sync(target.parent)
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
