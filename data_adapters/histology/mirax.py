"""The files of a MIRAX slide: NAME.mrxs is an index with a thumbnail; the pixels lie in the folder NAME."""

from pathlib import Path

SUFFIX = ".mrxs"
_PARTS = (".ini", ".dat")  # Slidedat.ini, Index.dat, Data0000.dat, ...


def parts(path: Path) -> list[Path]:
    """`path` and the files of its folder that hold the slide, by name; copies of a slide give them in equal order.

    A scan hashes them as the slide's content (whole up to 64 MiB each; beyond, size, head, middle and tail), and reads
    the slide again when one of them changes.
    """
    folder = path.with_suffix("")
    if not folder.is_dir():
        return [path]
    found = (p for p in folder.iterdir() if p.suffix.lower() in _PARTS and not p.name.startswith(".") and p.is_file())
    return [path, *sorted(found)]
