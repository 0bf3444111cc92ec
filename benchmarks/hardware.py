"""What result pages have in common: the machine's name, and how they are shown and kept."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def publish(page: str, out: Path | None) -> None:
    """Print a page, and write it to `out` where one is given."""
    print(page)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)
