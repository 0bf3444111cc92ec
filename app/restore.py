"""Restore of a backup into an empty data directory: all or nothing, whatever instant it is killed at."""

import json
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from app.backup import FORMAT, MANIFEST, STORE, Counted, Summary
from data_adapters.atomic import sync
from data_adapters.errors import UserError

MARK = ".restore"  # folder of a restore that has not ended; the service refuses a data directory that has one
PIECE = 1 << 20


def restore(backup: Path, *, data: Path) -> Summary:
    """Fill the new or empty folder `data` from a backup. Nothing of it is usable before every sum has been checked.

    Raises:
        UserError: `data` is not empty; the backup is cut off, changed, or not one; a file cannot be written.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise UserError(
            f"{data} is not empty.", remedy="Give a new folder, or empty this one; nothing is ever restored over."
        )
    draft = data / MARK
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        data.chmod(0o700)
        draft.mkdir()
        try:
            summary = _unpack(backup, draft)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for folder in (path for path in draft.rglob("*") if path.is_dir()):
            sync(folder)
        # From here on a failure leaves the mark, and with it a folder that the service refuses.
        for entry in sorted(draft.iterdir()):
            os.rename(entry, data / entry.name)
        sync(data)
        draft.rmdir()
        sync(data)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{backup} was not restored ({type(error).__name__}: {error}).", remedy="Check the file, or take another."
        ) from error
    return summary


def _unpack(backup: Path, folder: Path) -> Summary:
    seen: dict[str, dict[str, Any]] = {}
    manifest: dict[str, Any] | None = None
    with tarfile.open(backup, mode="r:") as tar:
        for member in tar:
            if manifest is not None or member.name in seen:
                raise _damaged()
            if not member.isreg() or member.issparse():
                raise UserError("The backup holds something that is no plain file.", remedy="Take another one.")
            content = tar.extractfile(member)
            assert content is not None
            if member.name == MANIFEST:
                manifest = json.load(content)
            else:
                seen[member.name] = _write(content, _inside(folder, member.name))
    if manifest is None:
        raise UserError("The backup is cut off: it has no manifest.", remedy="Copy it again from its source.")
    if manifest["format"] != FORMAT:
        raise UserError("The backup has another format.", remedy=f"Restore it with lejepa-med {manifest['version']}.")
    if manifest["files"] != seen or STORE not in seen:
        raise _damaged()
    return Summary(len(seen), sum(entry["bytes"] for entry in seen.values()))


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.parts or any(part in ("..", MARK) for part in pure.parts) or "\\" in name:
        raise UserError("The backup names a place outside of the data directory.", remedy="Take another one.")
    return folder / pure


def _write(content: IO[bytes], target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    counted, size = Counted(content), 0
    with target.open("xb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        while piece := counted.read(PIECE):
            size += stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": counted.sha256.hexdigest()}


def _damaged() -> UserError:
    return UserError("The backup is damaged: its files are not those of its manifest.", remedy="Take another copy.")
