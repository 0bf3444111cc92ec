"""Names of clients' files at rest: unreadable without the installation's salt, which lies outside the data directory.

A backup or a stolen disk then tells no names. A stream of SHAKE-256 under the salt and a random nonce is added to the
text, and a keyed hash shows whether it was changed.
"""

import base64
import hashlib
import hmac
import secrets

NONCE, MARK = 16, 16  # bytes


def seal(text: str, secret: bytes) -> str:
    """`text`, unreadable without the secret, the installation's salt; in base64."""
    nonce, plain = secrets.token_bytes(NONCE), text.encode()
    body = _add(plain, _key(secret, "stream"), nonce)
    return base64.b64encode(nonce + _mark(secret, nonce + body) + body).decode("ascii")


def unseal(text: str, secret: bytes) -> str | None:
    """What was sealed; None with another secret, or where it was changed."""
    sealed = base64.b64decode(text)
    nonce, mark, body = sealed[:NONCE], sealed[NONCE : NONCE + MARK], sealed[NONCE + MARK :]
    if not hmac.compare_digest(mark, _mark(secret, nonce + body)):
        return None
    return _add(body, _key(secret, "stream"), nonce).decode()


def _key(secret: bytes, use: str) -> bytes:
    return hashlib.blake2b(use.encode(), key=hashlib.sha256(secret).digest(), person=b"lejepa-med names").digest()


def _mark(secret: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=_key(secret, "mark"), digest_size=MARK).digest()


def _add(content: bytes, key: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(key + nonce).digest(len(content))
    return (int.from_bytes(content) ^ int.from_bytes(stream)).to_bytes(len(content))
