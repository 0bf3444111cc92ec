"""inspect: choose records of an archive, look at each, and write the sheet as one HTML page and one PNG."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.atomic import write_text
from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import setting_text
from lejepa_med.inspection.png import write_png
from lejepa_med.inspection.record import Look, look_at
from lejepa_med.page import render_page
from lejepa_med.plot import data_uri

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
