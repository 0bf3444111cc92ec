"""Thumbnails: small WebP pictures of what an encoder saw, in one file beside an embedding table, in its rows' order.

OUT/_about/thumbnails-00000.arrow ...  while a table is written: those of one shard, whole or absent
OUT/_about/thumbnails.arrow            of a finished table: Arrow's file format with the columns id and webp, so that a
                                       reader maps the file and touches only the picture that it wants
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from data_adapters.atomic import new_file
from data_adapters.base import Adapter, BaseAdapter
from lejepa_med.display import Pixels, choose_channels, montage, picture, planes

SIDE = 96  # pixels of the longest side: 2 to 3 KiB a picture
QUALITY = 75  # of WebP; at 60 the texture of tissue is gone
TILES = 9  # of a slide in its montage
FILE = "thumbnails.arrow"
SCHEMA = pa.schema([("id", pa.string()), ("webp", pa.binary())])
Thumbnail = Callable[[Tensor], bytes]


def shown_parts(adapter: Adapter, pixels: Tensor, places: Sequence[int]) -> tuple[list[Pixels], str]:
    """Some slices, tiles or planes of a prepared item for the eye, uint8, and which channels are which colour.

    Args:
        adapter: that prepared it.
        pixels: (n, C, H, W), or (n, C, D, H, W) of an encoder of volumes, whose planes along the first axis are meant.
        places: which, in their order.
    """
    flat = pixels.transpose(1, 2).flatten(0, 1) if pixels.ndim == 5 else pixels
    shown = choose_channels(flat.shape[1], _bands(adapter))
    return [picture(planes(flat[place]), shown) for place in places], shown.words


def thumbnails_of(adapter: Adapter) -> Thumbnail:
    """Return the function that makes the thumbnail of a prepared item: the middle slice or plane, or tiles of a slide.

    Items of an adapter that reads regions are slides, whose tiles become a montage.
    """
    bands, is_slide = _bands(adapter), isinstance(adapter, BaseAdapter) and adapter.reads_regions

    def make(pixels: Tensor) -> bytes:
        parts = pixels[:, :, pixels.shape[2] // 2] if pixels.ndim == 5 else pixels
        middle = [len(parts) // 2]
        places = np.linspace(0, len(parts) - 1, min(TILES, len(parts))).round().astype(int) if is_slide else middle
        shown = choose_channels(parts.shape[1], bands)
        return webp(montage([picture(planes(parts[int(place)]), shown) for place in places]), longest=SIDE)

    return make


def webp(pixels: Pixels, *, longest: int | None = None, quality: int = QUALITY) -> bytes:
    """Return uint8 (H, W) or (H, W, 3) as WebP, shrunk to `longest` pixels where it is given; never enlarged."""
    image = Image.fromarray(pixels)
    if longest is not None:
        image.thumbnail((longest, longest), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=quality, method=2)  # method 4, the default, takes twice as long
    return stream.getvalue()


def _bands(adapter: Adapter) -> list[str]:
    """Names of the channels, where the adapter has an option for them."""
    named: Any = adapter.describe().get("options", {}).get("bands") or ""
    return [name.strip() for name in named.split(",")] if isinstance(named, str) and named else []


def write_part(folder: Path, shard: int, ids: Sequence[str], pictures: Sequence[bytes]) -> None:
    """Write the thumbnails of a shard's rows."""
    table = pa.table([pa.array(ids, pa.string()), pa.array(pictures, pa.binary())], schema=SCHEMA)
    with new_file(folder / f"thumbnails-{shard:05d}.arrow") as draft, pa.ipc.new_file(str(draft), SCHEMA) as stream:
        stream.write_table(table)


def join_parts(folder: Path) -> None:
    """Make one file of the parts; a kill in between leaves both, and the next call goes on."""
    parts = sorted(folder.glob("thumbnails-*.arrow"))
    if not (folder / FILE).is_file():
        with new_file(folder / FILE) as draft, pa.ipc.new_file(str(draft), SCHEMA) as stream:
            for batch in _batches(parts):
                stream.write_batch(batch)
    for part in parts:
        part.unlink()


def _batches(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        with pa.memory_map(str(part)) as source:
            yield from pa.ipc.open_file(source).read_all().to_batches()


class Thumbnails:
    """The thumbnails of a finished table, mapped and not read. Raises FileNotFoundError where it has none."""

    def __init__(self, file: Path) -> None:
        self._pictures: pa.ChunkedArray = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column("webp")

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, row: int) -> bytes:
        found: bytes = self._pictures[row].as_py()
        return found
