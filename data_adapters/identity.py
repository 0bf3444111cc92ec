"""Pseudonyms: what leaves the machine are salted hashes of paths and groups, never the names themselves.

The salt is a secret of this installation, so nobody can test a guessed patient name against a published table.

An item's id is made from its path below the archive's root, its name inside the file, and the content. It stays the
same across scans and when the archive moves, which is what joins labels to embeddings. Two archives with equal relative
paths have different ids, unless the files themselves are equal.
"""

import errno
import hashlib
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from data_adapters.errors import UserError


def salt_file() -> Path:
    """Where the installation's secret lies: $XDG_DATA_HOME/lejepa-med/salt, by default below ~/.local/share."""
    # expanduser and not Path.home(), which raises for a user that the system does not know
    base = os.environ.get("XDG_DATA_HOME") or Path(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "lejepa-med" / "salt"


def salt() -> bytes:
    """The secret: LEJEPA_SALT when set (to share ids between machines), else the installation's file, made once.

    Raises:
        UserError: the file can neither be read nor made.
    """
    given = os.environ.get("LEJEPA_SALT")
    return given.encode() if given else _stored_salt(salt_file())


@lru_cache(maxsize=4)
def _stored_salt(file: Path) -> bytes:
    try:
        if file.parts[0].startswith("~"):
            raise OSError(errno.ENOENT, "this user has no home folder")
        if not file.is_file():
            _make_salt(file)
        known = file.read_text().strip().encode()
        if not known:
            raise OSError(errno.ENODATA, "the file is empty")
    except OSError as error:
        raise UserError(
            f"The secret of this installation, {file}, cannot be read or made: {error.strerror}.",
            remedy="Set LEJEPA_SALT to a secret text of your own and keep it: ids of images are made with it, and "
            "another one gives other ids. Or set XDG_DATA_HOME to a folder that can be written.",
        ) from error
    return known


def _make_salt(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):  # another process was first: then its salt is the one
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def pseudonym(kind: str, *parts: str) -> str:
    """A 128-bit hex pseudonym of `parts` under the installation's salt; `kind` keeps ids and groups apart."""
    message = "\x00".join((kind, *parts)).encode()
    return hashlib.blake2b(message, key=_key(salt()), digest_size=16).hexdigest()


PLACE = 20  # characters of an id that are those of the place alone: 80 bits, the other 48 are those of the content


def place_id(path: str, item: str) -> str:
    """How the id of an item at this path below its archive's root begins, whatever the content."""
    return pseudonym("id", path, item)[:PLACE]


def item_id(path: str, item: str, content: str) -> str:
    """The id of an item: of the path below its archive's root, the name inside the file, and the content's hash."""
    return place_id(path, item) + pseudonym("content of", path, item, content)[PLACE:]


@lru_cache(maxsize=4)
def _key(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


_SEALED = re.compile(r"hash:([0-9a-f]{32})")


def group_id(group: str) -> str:
    """The pseudonym of a group; of a sealed group, the one it carries."""
    found = _SEALED.fullmatch(group)
    return found.group(1) if found else pseudonym("group", group)


def sealed(group: str) -> str:
    """A group without its name, `hash:` and its pseudonym; it can be used and written wherever the name could."""
    return f"hash:{group_id(group)}" if group else ""
