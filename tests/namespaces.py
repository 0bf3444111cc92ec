"""Commands in a mount namespace of their own: small, full or read-only file systems that nobody else sees."""

import os
import shutil
import subprocess
from functools import lru_cache

import pytest


@lru_cache
def _unshare() -> list[str] | None:
    """The command that makes a namespace, or None where this system does not let this user."""
    for options in (["-m"], ["-rm"]):
        command = ["unshare", *options, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0:
            return ["unshare", *options]
    return None


def in_namespace(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount; skips the test where namespaces are not permitted."""
    unshare = _unshare()
    if unshare is None:
        pytest.skip("unshare -m is not permitted here: this test mounts file systems")
    return subprocess.run(
        [*unshare, "sh", "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
