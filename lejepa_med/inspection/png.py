"""The sheet as one PNG: a row of pictures for each record, for a message or a slide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_adapters.atomic import new_file
from lejepa_med.inspection.display import Pixels
from lejepa_med.inspection.record import Look

SIDE = 168  # pixels of a picture
GAP, MARGIN, LINE = 8, 16, 18
PAGE, INK, SOFT, WARN, EMPTY = "#ffffff", "#1c2430", "#566273", "#8a4b00", "#c2410c"
MOST_WORDS = 3  # warnings printed for a record; the page has them all


def write_png(file: Path, looks: Sequence[Look]) -> None:
    """One row a record: raw, prepared, views; above it the id, below it the warnings."""
    columns = 2 + max((len(look.views) for look in looks), default=0)
    width = 2 * MARGIN + columns * (SIDE + GAP) - GAP
    heights = [_height(look) for look in looks]
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights)), PAGE)
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for look, height in zip(looks, heights, strict=True):
        _row(sheet, draw, look, top)
        top += height
    with new_file(file) as draft:
        sheet.save(draft, format="PNG", optimize=True)


def _height(look: Look) -> int:
    return LINE + SIDE + LINE * (1 + min(len(look.warnings), MOST_WORDS)) + 2 * GAP


def _row(sheet: Image.Image, draw: Any, look: Look, top: int) -> None:
    facts = dict(look.facts)
    head = [
        look.name or look.id[:12],
        *(facts[key] for key in ("size", "bands", "spacing", "resolution") if key in facts),
    ]
    _write(draw, MARGIN, top, "   ".join(head), INK, size=14)
    cells: list[tuple[Pixels | None, str, bool]] = [(look.raw, "raw", False), (look.prepared, "prepared", False)]
    cells += [(view.image, view.kind, view.empty) for view in look.views]
    for number, (pixels, words, empty) in enumerate(cells):
        left, y = MARGIN + number * (SIDE + GAP), top + LINE + 2
        if pixels is not None:
            _place(sheet, pixels, left, y)
        if empty:
            draw.rectangle((left - 2, y - 2, left + SIDE + 1, y + SIDE + 1), outline=EMPTY, width=2)
        _write(draw, left, y + SIDE + 1, words + (": background" if empty else ""), EMPTY if empty else SOFT, size=12)
    for number, warning in enumerate(look.warnings[:MOST_WORDS]):
        _write(draw, MARGIN, top + LINE * (2 + number) + SIDE + 3, f"! {warning}", WARN, size=13)


def _place(sheet: Image.Image, pixels: Pixels, left: int, top: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    sheet.paste(image.resize(size, way), (left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2))


def _write(draw: Any, left: int, top: int, text: str, colour: str, *, size: int) -> None:
    draw.text((left, top), text, fill=colour, font=ImageFont.load_default(size))
