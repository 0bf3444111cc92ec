"""The scan of files that a client sent or named: in a process of its own, told in words that hold no path."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from app.core.errors import ProblemError, describe_rejected, log_unexpected
from app.core.settings import Settings
from app.uploads.sandbox import Sandbox
from data_adapters.base import Adapter, Rejected
from data_adapters.catalog import Catalog
from data_adapters.errors import MissingExtraError, UserError
from data_adapters.files import OUTSIDE
from data_adapters.identity import pseudonym
from data_adapters.manifest import Manifest
from data_adapters.readers.screen import is_whole
from data_adapters.scan import Scan, scan_archive

FILE_SECONDS = 120.0  # at work on one file
FILES_OF_A_PROCESS = 64  # below which another one hardly pays


@dataclass(frozen=True)
class Refusal:
    """A file, or an item in it, that cannot be used. `path` is below the scanned folder."""

    path: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Found:
    """The readable items, the refused files, and what of the catalogue fits no item, or which items have no row.

    Attributes:
        unused: how many rows no item matched; `first_unused` are the numbers of the first ones.
        without_row: how many items have no row in the catalogue.
    """

    manifest: Manifest
    refused: list[Refusal]
    unused: int
    first_unused: list[int]
    without_row: int


def scan(
    adapter: Adapter,
    root: Path,
    *,
    journal: Path,
    settings: Settings,
    sandbox: Sandbox,
    verify: bool,
    files: int,
    catalog: Catalog | None = None,
    inside: Path,
    origins: Mapping[Path, Path] | None = None,
    tell: Callable[[float], None],
) -> Found:
    """Headers of all files below `root`, and with `verify` their pixels; a scan that was interrupted goes on.

    Never in this process: a reader that crashes, hangs or takes too much memory costs the file that it was at work on.

    Args:
        adapter: the modality.
        root: the folder.
        journal: folder of the job for what was read already.
        settings: limits.
        sandbox: where the processes come from.
        verify: decode every item once.
        files: about how many there are, for the number of processes.
        catalog: groups and labels of the files.
        inside: folder that no file may lie outside of, links followed.
        origins: where files of other names lay; see `scan_archive`.
        tell: gets the share that is done; may raise Stopped.

    Raises:
        ProblemError: 422, the folder cannot be scanned.
        MissingExtraError: the reader of this modality is not installed.
    """
    try:
        found = scan_archive(
            adapter,
            root,
            catalog=catalog,
            verify=verify,
            progress=lambda done, total: tell(done / max(1, total)),
            workers=max(1, min(settings.cores, files // FILES_OF_A_PROCESS)),
            journal=journal,
            file_seconds=FILE_SECONDS,
            memory_bytes=settings.max_decode_bytes,
            inside=inside,
            origins=origins,
            start=sandbox.start_scan,
        )
        return _within_limits(found, settings=settings, inside=inside, whole=is_whole(adapter))
    except MissingExtraError:
        raise
    except UserError as error:  # its words are for the operator and hold the folder's path
        raise ProblemError(
            422,
            "archive-unreadable",
            "The files cannot be scanned.",
            remedy="The operator sees the cause in the log of the service.",
            reference=log_unexpected(error),
        ) from None


def _within_limits(found: Scan, *, settings: Settings, inside: Path, whole: bool) -> Found:
    manifest = found.manifest
    refused = [refusal(one, found.root) for one in found.refused]
    kept = []
    for row, (path, text) in enumerate(zip(manifest.column("path"), manifest.column("meta"), strict=True)):
        meta = json.loads(text)
        names = [path, *meta.get("files", ())]
        if not all(_lies_in(found.root / name, inside) for name in names):
            refused.append(Refusal(path, *OUTSIDE))
        elif whole and math.prod(meta.get("size", ())) > settings.max_pixels:
            reason = f"more than {settings.max_pixels} pixels or voxels"
            refused.append(Refusal(path, reason, "Send a smaller part; the operator sets LEJEPA_MAX_PIXELS."))
        else:
            kept.append(row)
    if len(kept) < len(manifest):
        manifest = manifest.select(kept)
    return Found(
        manifest,
        sorted(refused, key=lambda one: one.path),
        found.unused_rows,
        [number for number, _ in found.first_unused],
        found.without_row,
    )


def refusal(found: Rejected, root: Path) -> Refusal:
    """A refused file as it is told."""
    told = describe_rejected(found)
    path = Path(found.uri)
    return Refusal(path.relative_to(root).as_posix() if path.is_relative_to(root) else "", told.detail, told.remedy)


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def owned(manifest: Manifest, upload_id: str) -> Manifest:
    """The manifest of an upload with ids and groups of its own: 00000.png of two uploads are two things."""
    columns: dict[str, list[Any]] = {
        "id": [
            pseudonym("id", upload_id, path, item)
            for path, item in zip(manifest.column("path"), manifest.column("item"), strict=True)
        ],
        "group": [pseudonym("group", upload_id, group) for group in manifest.column("group")],
    }
    rows = manifest.rows
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return replace(manifest, rows=rows)


def read_manifest(file: Path, root: Path) -> Manifest:
    """A manifest that a job wrote, of files that lie in `root` now: the data directory may have been moved.

    Raises:
        FileNotFoundError: there is none.
        ProblemError: 500, it is damaged.
    """
    file.stat()
    try:
        known = Manifest.read(file)
    except UserError as error:
        raise ProblemError(
            500,
            "manifest-unusable",
            "The list of the archive's items is damaged.",
            remedy="Send the files again.",
            reference=log_unexpected(error),
        ) from None
    return replace(known, root=root)
