"""inspect: choose records of an archive, look at each, and write the sheet as one HTML page and one PNG."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_adapters.atomic import new_file, write_text
from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import setting_text
from lejepa_med.display import Pixels
from lejepa_med.inspection.record import Look, look_at
from lejepa_med.page import render_page
from lejepa_med.plot import data_uri

SIDE = 168  # pixels of a picture
GAP, MARGIN, LINE = 8, 16, 18
PAPER, INK, SOFT, WARN, EMPTY = "#ffffff", "#1c2430", "#566273", "#8a4b00", "#c2410c"
MOST_WORDS = 3  # warnings printed for a record; the page has them all


def write_png(file: Path, looks: Sequence[Look]) -> None:
    """One row a record: raw, prepared, views; above it the id, below it the warnings."""
    columns = 2 + max((len(look.views) for look in looks), default=0)
    width = 2 * MARGIN + columns * (SIDE + GAP) - GAP
    heights = [_height(look) for look in looks]
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights)), PAPER)
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


PAGE, PICTURE = "inspect.html", "inspect.png"
LONGEST = 448  # pixels; a larger raw picture or grid of slices is shrunk to this


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What was written: the looks, and how many of them have a warning."""

    looks: Sequence[Look]
    page: Path
    picture: Path

    @property
    def warned(self) -> int:
        """Records with at least one warning."""
        return sum(1 for look in self.looks if look.warnings)


def choose_rows(manifest: Manifest, n: int, *, seed: int) -> list[int]:
    """Up to `n` rows, drawn evenly over the groups (patients, slides, sky cells), in the manifest's order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(manifest)).tolist()
    groups, turn = manifest.column("group"), Counter[str]()
    ranked = []
    for row in order:
        ranked.append((turn[groups[row]], row))
        turn[groups[row]] += 1
    ranked.sort(key=lambda entry: entry[0])  # stable: every group's first row comes before any group's second
    return sorted(row for _, row in ranked[:n])


def inspect(
    adapter: Adapter,
    manifest: Manifest,
    out: Path,
    *,
    n: int = 8,
    seed: int = 0,
    names: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sheet:
    """Write `inspect.html` and `inspect.png` into `out`.

    Args:
        adapter: fitted; it reads the records.
        manifest: of the archive.
        out: folder, made if missing.
        n: records to show.
        seed: of the choice and of the views; a run with this seed and manifest sees the same views.
        names: show file names; without it the sheet holds only the pseudonyms of scan.
        progress: called with (records done, records in all).
    """
    rows = choose_rows(manifest, n, seed=seed)
    looks = []
    for done, row in enumerate(rows, start=1):
        looks.append(look_at(adapter, manifest, row, seed=seed, names=names))
        if progress is not None:
            progress(done, len(rows))
    out.mkdir(parents=True, exist_ok=True)
    sheet = Sheet(looks=looks, page=out / PAGE, picture=out / PICTURE)
    write_text(sheet.page, render(sheet, adapter, total=len(manifest), seed=seed))
    write_png(sheet.picture, looks)
    return sheet


def render(sheet: Sheet, adapter: Adapter, *, total: int, seed: int) -> str:
    """The page: no script, nothing from the network; all text is escaped."""
    described = adapter.describe()
    common = Counter(text for look in sheet.looks for text in dict.fromkeys(map(kind_of, look.warnings)))
    return render_page(
        "lejepa_med.inspection",
        "sheet.html.j2",
        filters={"uri": lambda image: data_uri(image, longest=LONGEST)},
        sheet=sheet,
        spec=adapter.spec,
        modality=adapter.name,
        options=_options(described.get("options", {})),
        total=total,
        seed=seed,
        common=common.most_common(),
        top=_top,
    )


def kind_of(warning: str) -> str:
    """A warning without its numbers and advice; a refusal keeps its reason."""
    kind, _, rest = warning.partition(":")
    return f"{kind}:{rest.split('.')[0]}" if kind == "refused" else kind


def _top(histogram: Sequence[float]) -> float:
    """Height of the histogram's axis: the largest bin that is no end of the range, where cut-off values pile up."""
    return max([*histogram[1:-1], 1e-9])


def _options(options: dict[str, Any]) -> list[tuple[str, str]]:
    """Options as text; a pipeline by the names of its steps."""
    return [(name, setting_text(name, value)) for name, value in options.items()]
