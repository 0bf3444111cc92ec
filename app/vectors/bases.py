"""The bases of all tables: made at the first search, kept open, removed when their table is no more."""

import errno
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from app.errors import ProblemError, log_unexpected
from app.library import Library, Stamp, unusable
from data_adapters.errors import UserError
from lejepa_med.search.base import Base, build_base, table_key

OPEN = 8  # bases kept open; their pages are the system's
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class Bases:
    """Folders of bases below `folder`, each named by the key of its table. Methods block; call them on threads."""

    def __init__(self, library: Library, folder: Path) -> None:
        self._library = library
        self._folder = folder
        self._open: dict[Stamp, Base] = {}
        self._keys: dict[Stamp, str] = {}
        self._lock = threading.Lock()  # held while a base is made, so that none is made twice

    def open(self, name: str) -> tuple[Base, bool]:
        """The base of a table, and whether it was made now.

        Raises:
            ProblemError: 404, no such table; 422, it cannot be read; 507, no room for the base.
        """
        stamp = self._library.table_stamp(name)
        if (base := self._open.get(stamp)) is not None:
            return base, False
        with self._lock:
            if (base := self._open.get(stamp)) is not None:
                return base, False
            target = self._folder / self._key(stamp)
            is_new = not target.is_dir()
            base = self._make(stamp.folder, target) if is_new else Base(target)
            while len(self._open) >= OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[stamp] = base
            return base, is_new

    def key(self, name: str) -> str:
        """The key of a table; ProblemError as `open`."""
        return self._key(self._library.table_stamp(name))

    def has(self, key: str) -> bool:
        """Whether the base of the table `key` is there."""
        return (self._folder / key).is_dir()

    def sweep(self) -> frozenset[str]:
        """Remove the bases of tables that are no more, and drafts of killed builds; the keys of the present tables.

        A base that a search reads stays readable until it ends: its file has no name any more, but is still there.
        """
        with self._lock:
            present = {stamp: self._key(stamp) for stamp in self._present()}
            keep = frozenset(present.values())
            for entry in self._folder.iterdir() if self._folder.is_dir() else ():
                if entry.name not in keep:
                    shutil.rmtree(entry, ignore_errors=True)
            # Held open, they would keep the disk's space of what was removed, and a key a table for ever.
            self._open = {stamp: base for stamp, base in self._open.items() if stamp in present}
            self._keys = present
        return keep

    def _present(self) -> Iterator[Stamp]:
        for name in self._library.table_infos():
            try:
                stamp = self._library.table_stamp(name)
            except ProblemError:
                continue  # removed at this moment
            if stamp.size:
                yield stamp

    def _key(self, stamp: Stamp) -> str:
        if stamp not in self._keys:
            try:
                self._keys[stamp] = table_key(stamp.folder)
            except (OSError, UserError) as error:  # removed, or written anew, at this moment
                raise unusable(error) from None
        return self._keys[stamp]

    def _make(self, table: Path, target: Path) -> Base:
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            build_base(table, target)
            return Base(target)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise unusable(error) from None
            raise ProblemError(
                507,
                "no-room",
                "The service cannot write the file that a search reads.",
                remedy="The operator looks at the disk of the data directory: the file takes 4 bytes for each number "
                "of the embedding table.",
                reference=log_unexpected(error),
            ) from None
        except Exception as error:
            raise unusable(error) from None
