"""What quality control found as CSV, as one HTML page of pictures, and as JSON; and the list that excludes images."""

import base64
import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_adapters.atomic import write_text
from data_adapters.tables import count
from lejepa_med.page import render_page
from lejepa_med.quality.outliers import KINDS, Suspect

PAGE, TABLE = "outliers.html", "outliers.csv"
SHOWN = 60  # pictures of a kind on the page
COLUMNS = ("id", "kind", "rank", "score", "reason", "group", "other", "other_group", "label", "suggested", "exclude")
ABOUT: Mapping[str, str] = {
    "copy": "The same picture in two groups: scores on a split that parts them are too high. Adjacent "
    "slices of one patient whose slices lie in two groups are found, too.",
    "odd": "Far from all images of other groups. Ranked by distance; each group counts once in the score.",
    "layout": "Pictures of this archive are laid out alike; these are not: a wrong plane, orientation, sequence "
    "or part of the body.",
    "marked": "Colours that neither stain nor sky has: pens, labels, satellite trails, defects of the camera.",
    "empty": "Hardly any contrast: background, a blank slice, a field without a source.",
    "header": "A header fact that nearly all other images have otherwise: another sequence, plane, size or scanner.",
    "label": "A probe that has not seen the image or its group believes in another class (confident learning, "
    "Northcutt et al. 2021).",
}


def rows_of(
    suspects: Sequence[Suspect], *, ids: Sequence[str], groups: Sequence[str], labels: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """Return the findings as rows with `COLUMNS`, ranked within each kind; `exclude` is empty, for a person to fill."""
    ranks: Counter[str] = Counter()
    rows = []
    for one in suspects:
        ranks[one.kind] += 1
        rows.append(
            {
                "id": ids[one.row],
                "kind": one.kind,
                "rank": ranks[one.kind],
                "score": round(one.score, 6),
                "reason": one.reason,
                "group": groups[one.row],
                "other": None if one.other is None else ids[one.other],
                "other_group": None if one.other is None else groups[one.other],
                "label": None if labels is None else labels[one.row],
                "suggested": one.suggested,
                "exclude": None,
            }
        )
    return rows


def counts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many findings there are of each kind, also none."""
    found = Counter(row["kind"] for row in rows)
    return {kind: found[kind] for kind in KINDS}


def summary(rows: Sequence[Mapping[str, Any]], *, images: int) -> list[str]:
    """The findings in sentences."""
    told = [f"{number:,} {KINDS[kind]}" for kind, number in counts_of(rows).items() if number]  # type: ignore[index]
    if not told:
        return [f"Nothing to look at in {count(images, 'image')}."]
    return [f"To look at in {count(images, 'image')}: {', '.join(told)}."]


def as_csv(rows: Sequence[Mapping[str, Any]], *, names: Mapping[str, str] | None = None) -> str:
    """The findings as CSV; with `names` (paths by id) a column path."""
    stream = io.StringIO()
    columns = [*COLUMNS[:1], *(("path",) if names else ()), *COLUMNS[1:]]
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, **({"path": names.get(row["id"], "")} if names else {})})
    return stream.getvalue()


def write_outliers(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    title: str,
    images: int,
    notes: Sequence[str] = (),
    thumbnails: Mapping[str, bytes] | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Write `outliers.csv` and `outliers.html` into the folder `out`.

    Args:
        rows: of `rows_of`.
        out: made if missing.
        title: of the page.
        images: looked through.
        notes: what could not be looked for, as sentences.
        thumbnails: encoded pictures (WebP) by id, of the images that are shown.
        names: paths by id.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / TABLE, as_csv(rows, names=names))
    kinds = []
    for kind, heading in KINDS.items():
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            kinds.append(
                {"name": kind, "heading": heading, "about": ABOUT[kind], "rows": mine[:SHOWN], "all": len(mine)}
            )
    page = render_page(
        "lejepa_med.quality",
        "outliers.html.j2",
        filters={"webp": _uri},
        title=title,
        images=images,
        kinds=kinds,
        notes=notes,
        summary=summary(rows, images=images),
        thumbnails=thumbnails or {},
        names=names or {},
    )
    write_text(out / PAGE, page)


def shown_ids(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the images that the page shows."""
    ranked = [row for row in rows if row["rank"] <= SHOWN]
    return {name for row in ranked for name in (row["id"], row["other"]) if name}


def _uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")
