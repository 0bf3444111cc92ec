"""Archives of many tiny pictures, made for measuring."""

import struct
import zlib
from pathlib import Path

import numpy as np

SIDE = 32  # pixels
PER_FOLDER = 1000


def make_archive(folder: Path, files: int, *, flat: bool = False) -> None:
    """Write `files` PNG files with contents of their own: one picture, and its number in a text chunk."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    template = folder / "template.png"
    folder.mkdir(parents=True)
    Image.fromarray(pixels).save(template)
    content = template.read_bytes()
    template.unlink()
    head, tail = content[:33], content[33:]  # signature and IHDR
    for index in range(files):
        text = b"tEXtnumber\0%d" % index
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        file = folder / place(index, flat=flat)
        if not flat and index % PER_FOLDER == 0:
            file.parent.mkdir()
        file.write_bytes(head + chunk + tail)


def place(index: int, *, flat: bool) -> str:
    """Path of a file below the archive."""
    return f"{index:07d}.png" if flat else f"patient-{index // PER_FOLDER:04d}/{index:07d}.png"


def make_catalog(archive: Path, files: int, *, flat: bool) -> Path:
    """A table with one row for each file, beside the archive."""
    table = archive.with_suffix(".csv")
    with table.open("w") as stream:
        stream.write("path,group,label,split\n")
        for index in range(files):
            group = index // PER_FOLDER
            row = (
                f"{archive.name}/{place(index, flat=flat)},g{group},class-{index % 7},{'val' if group % 5 else 'train'}"
            )
            stream.write(f"{row}\n")
    return table
