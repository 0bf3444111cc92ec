"""Code blocks of the documentation, run as they are printed."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# What a page starts in the background ends with it, however it ends.
HEAD = "set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the page's code blocks in these languages, in their order."""
    found = re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, text) for language, text in found]


def commands(page: Path) -> str:
    """The page's shell and Python blocks as one shell script."""
    parts = []
    for language, text in blocks(page, "sh", "python"):
        parts.append(text if language == "sh" else f"python - <<'PYTHON'\n{text}PYTHON\n")
    assert parts, f"{page} has no commands"
    return "".join(parts)


def run(script: str, folder: Path, *, shorter: Mapping[str, str] | None = None, **variables: str) -> str:
    """Run a script in `folder` with this checkout's `lejepa-med` and a free port in place of 8000; its output.

    Args:
        script: of bash; an error in any command ends it and fails the test.
        folder: where it runs.
        shorter: patterns and what stands in their place; each must occur somewhere on a page.
        variables: of the environment.
    """
    for pattern, other in (shorter or {}).items():
        script = re.sub(pattern, other, script)
    script = script.replace("localhost:8000", f"127.0.0.1:{(port := free_port())}").replace("8000", str(port))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "160",
        **variables,
    }
    done = subprocess.run(
        ["bash", "-c", HEAD + script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
