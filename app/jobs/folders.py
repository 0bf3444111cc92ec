"""Folders of the operator's own archives: named by clients, read only, and never left."""

from pathlib import Path

from app.errors import ProblemError, not_found
from app.settings import Settings


def archive_folder(settings: Settings, relative: str) -> Path:
    """A folder below the operator's archives, links resolved.

    Raises:
        ProblemError: 422, the operator has opened none; 404, no such folder, or one outside.
    """
    root = archives_root(settings)
    missing = not_found("folder", remedy="Name a folder below the one that the operator set as LEJEPA_ARCHIVES_DIR.")
    if "\x00" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise missing
    try:
        folder = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError):  # not there, a name that is too long, or links in a circle
        raise missing from None
    if not (folder.is_relative_to(root) and folder.is_dir()):
        raise missing
    return folder


def archive_table(settings: Settings, folder: Path, relative: str) -> Path:
    """A table in a folder of the operator's archives, links resolved.

    Raises:
        ProblemError: 404, no such table, or one outside of the archives.
    """
    missing = not_found("table in the folder", remedy="Name a table by its path below the folder.")
    if "\x00" in relative or Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise missing
    try:
        file = (folder / relative).resolve(strict=True)
    except (OSError, RuntimeError):
        raise missing from None
    if not (file.is_relative_to(archives_root(settings)) and file.is_file()):
        raise missing
    return file


def archives_root(settings: Settings) -> Path:
    """Where all archives of the operator lie.

    Raises:
        ProblemError: 422, the operator has opened none.
    """
    if settings.archives_dir is None:
        raise ProblemError(
            422,
            "no-archives",
            "This service embeds no folders of its own machine.",
            remedy="Send the files to POST /v1/uploads, or the operator sets LEJEPA_ARCHIVES_DIR.",
        )
    return settings.archives_dir.resolve()
