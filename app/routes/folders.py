"""GET /v1/folders: what the operator has opened to be embedded."""

import os
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import access
from app.jobs.embed_archive import archive_folder, archives_root
from app.routes import Running
from lejepa_med.client.wire.images import Folder, Folders

router = APIRouter(prefix="/v1/folders", tags=["archives"])
LISTED = 1000  # folders of an answer
COUNTED = 10_000  # entries of a folder that are looked at


@router.get("", summary="List folders that can be embedded", responses={404: PROBLEM_RESPONSES[404]})
@access("embed")
def list_folders(
    service: Running,
    path: Annotated[str, Query(max_length=1000, description="a folder of an earlier answer; empty: the top")] = "",
) -> Folders:
    """Folders below LEJEPA_ARCHIVES_DIR, one level at a time. `path` of each is `folder` of POST /v1/archives."""
    root = archives_root(service.settings)
    inside = archive_folder(service.settings, path) if path else root
    entries, cut = _entries(inside)
    names = sorted(entry.name for entry in entries if _is_folder(entry, root))
    found = [_folder(root, inside / name) for name in names[:LISTED]]
    is_cut = cut or len(names) > LISTED or any(more for _, more in found)
    return Folders(path="" if inside == root else path, folders=[one for one, _ in found], truncated=is_cut)


def _folder(root: Path, folder: Path) -> tuple[Folder, bool]:
    entries, cut = _entries(folder)
    folders = sum(_is_folder(entry, root) for entry in entries)
    files = sum(entry.is_file() for entry in entries)
    path = folder.relative_to(root).as_posix()
    return Folder(path=path, name=folder.name, folders=folders, files=files), cut


def _entries(folder: Path) -> tuple[list[os.DirEntry[str]], bool]:
    """Visible entries of a folder, and whether there are more; none of one that may not be read."""
    found: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(found) == COUNTED:
                    return found, True
                if not entry.name.startswith("."):
                    found.append(entry)
    except OSError:
        return [], False
    return found, False


def _is_folder(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether an entry is a folder inside of the archives. Links out of them are not followed by scans, either."""
    return entry.is_dir() and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
