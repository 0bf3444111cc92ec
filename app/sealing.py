"""Names of clients' files at rest: unreadable without the installation's salt, which lies outside the data directory.

A backup or a stolen disk then tells no names.
"""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken


def seal(text: str, secret: bytes) -> str:
    """`text`, unreadable without the secret, the installation's salt: a Fernet token (AES-128-CBC, HMAC-SHA256)."""
    return _fernet(secret).encrypt(text.encode()).decode("ascii")


def unseal(text: str, secret: bytes) -> str | None:
    """What was sealed; None with another secret, or where it was changed."""
    try:
        return _fernet(secret).decrypt(text).decode()
    except InvalidToken:
        return None


def _fernet(secret: bytes) -> Fernet:
    """The key is made for this use, so that a token tells nothing of the pseudonyms' key, which is of the same salt."""
    key = hashlib.blake2b(b"names", key=hashlib.sha256(secret).digest(), person=b"lejepa-med names", digest_size=32)
    return Fernet(base64.urlsafe_b64encode(key.digest()))
