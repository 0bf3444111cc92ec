"""Tiles of slides for pathology's tools: HDF5 as CLAM and TRIDENT read it, GeoJSON for QuPath, and heat maps."""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_adapters.atomic import new_file, write_text
from data_adapters.errors import require
from data_adapters.manifest import Manifest
from lejepa_med.display import Pixels
from lejepa_med.errors import UserError
from lejepa_med.inspection.record import raw_picture
from lejepa_med.models.embed import EmbeddingTable, read_shards
from lejepa_med.page import render_page
from lejepa_med.plot import COLOURS, data_uri
from lejepa_med.probes.probe import Prediction, Probe

PLACES = ("whole", "x", "y", "side")
PICTURE = 1024  # pixels; longest side of a heat map
STRENGTH = 0.6  # of the colour over the slide
AT_40 = 10.0  # magnification times um per pixel: .25 is called 40x, .5 20x
GLASS = 244  # grey of a slide whose picture is not given


@dataclass(frozen=True)
class SlideTiles:
    """The tiles of one slide, n of them.

    Attributes:
        slide: its id, as in a table with one row a slide.
        name: of its files: the id, or the slide's own name where that was asked for.
        rows: (n,) of the table.
        corners: (n, 2) left and top, level-0 pixels.
        side: of a tile, level-0 pixels.
        level0_mpp: um per pixel, or None.
        tile_mpp: likewise of what the encoder saw.
        size: width and height of the slide in level-0 pixels, or None where no manifest is given.
        picture: its overview, or None.
    """

    slide: str
    name: str
    rows: NDArray[np.int64]
    corners: NDArray[np.float64]
    side: float
    level0_mpp: float | None
    tile_mpp: float | None
    size: tuple[int, int] | None
    picture: Pixels | None = None


def slides_of(folder: Path, *, manifest: Manifest | None = None, pictures: bool = False) -> list[SlideTiles]:
    """The slides of a table with a row for each tile, in the table's order.

    Args:
        folder: of the table.
        manifest: of a scan of the slides: their names become those of files, and their sizes are known.
        pictures: also read their overviews.

    Raises:
        UserError: the table has no places of tiles, or the manifest knows none of the slides.
    """
    table = read_shards(folder)
    if not set(PLACES) <= set(table.column_names):
        raise UserError(
            f"{folder} has a row for each slide, not for each tile, so nothing can be drawn on a slide.",
            remedy="Embed the slides once more with: lejepa-med embed RUN SLIDES --per-tile --out FOLDER",
        )
    facts = {name: table.column(name).to_pylist() for name in table.column_names if name != "vector"}
    known = {} if manifest is None else {name: row for row, name in enumerate(manifest.column("id"))}
    places: dict[str, list[int]] = {}
    for row, slide in enumerate(facts["whole"]):
        if slide is not None:  # a tile that is a file of its own has no place
            places.setdefault(slide, []).append(row)
    if manifest is not None and not known.keys() & places.keys():
        raise UserError(
            "The scan knows none of the table's slides.",
            remedy="Give the folder of a scan of the slides that were embedded, by the same installation.",
        )
    found = []
    for slide, rows in places.items():
        record = manifest.record(known[slide]) if manifest is not None and slide in known else None
        size = None if record is None else (int(record.meta["size"][0]), int(record.meta["size"][1]))
        found.append(
            SlideTiles(
                slide=slide,
                name=slide if record is None else Path(record.uri).stem,
                rows=np.array(rows),
                corners=np.array([(facts["x"][row], facts["y"][row]) for row in rows], np.float64),
                side=float(facts["side"][rows[0]]),
                level0_mpp=facts.get("level0_mpp", {rows[0]: None})[rows[0]],
                tile_mpp=facts.get("tile_mpp", {rows[0]: None})[rows[0]],
                size=size,
                picture=raw_picture(record)[0] if record is not None and pictures else None,
            )
        )
    return found


def write_h5(file: Path, tiles: SlideTiles, vectors: NDArray[np.float32], *, encoder: str) -> None:
    """Write `features` (n, dim) float32 and `coords` (n, 2) int64, left and top at level 0, with TRIDENT's attributes.

    CLAM reads the same two data sets. Corners are rounded to whole pixels; the attributes name the tile's side at level
    0 and as the encoder saw it, the magnifications (10 / mpp) where mpp is known, and the slide.
    """
    h5py = require("h5py", extra="histology")
    shrink = 1.0 if tiles.level0_mpp is None or tiles.tile_mpp is None else tiles.tile_mpp / tiles.level0_mpp
    facts: dict[str, Any] = {
        "patch_size": round(tiles.side / shrink),
        "patch_size_level0": round(tiles.side),
        "overlap": 0,
        "name": tiles.name,
    }
    for name, mpp in (("level0_magnification", tiles.level0_mpp), ("target_magnification", tiles.tile_mpp)):
        if mpp is not None:
            facts[name] = round(AT_40 / mpp)
    if tiles.size is not None:
        facts["level0_width"], facts["level0_height"] = tiles.size
    with new_file(file) as draft, h5py.File(draft, "w") as target:
        target.create_dataset("features", data=np.asarray(vectors[tiles.rows], np.float32)).attrs["encoder"] = encoder
        coords = target.create_dataset("coords", data=np.rint(tiles.corners).astype(np.int64))
        coords.attrs.update(facts)


def classes_of(predictions: Sequence[Prediction], probe: Probe) -> dict[str, tuple[int, int, int]]:
    """A colour for each class of a probe, empty for numbers."""
    return {name: rgb(COLOURS[place % len(COLOURS)]) for place, name in enumerate(probe.classes)}


def rgb(colour: str) -> tuple[int, int, int]:
    """'#rrggbb' as three numbers from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def geojson(
    tiles: SlideTiles, predictions: Sequence[Prediction], probe: Probe, ids: Sequence[str], *, annotations: bool = False
) -> dict[str, Any]:
    """A FeatureCollection (RFC 7946, in level-0 pixels) of the tiles with their answers, as QuPath reads it.

    A tile is a Polygon with objectType "tile" (detections; "annotation" with `annotations`), a classification with name
    and colour, and measurements: probabilities or value, novelty and uncertainty. QuPath takes each slide's y downward,
    which RFC 7946 does not know: rings run counterclockwise in its sense of x and y.
    """
    colours = classes_of(predictions, probe)
    features = []
    for row, (x, y) in zip(tiles.rows.tolist(), tiles.corners.tolist(), strict=True):
        given, side = predictions[row], tiles.side
        measured = {f"probability {name}": value for name, value in (given.probabilities or {}).items()}
        measured |= {} if given.value is None else {"value": given.value}
        measured |= {"novelty": given.novelty, "uncertainty": given.uncertainty}
        label = given.label if given.labels is None else "; ".join(given.labels) or None
        properties: dict[str, Any] = {
            "objectType": "annotation" if annotations else "tile",
            "measurements": {name: round(float(value), 6) for name, value in measured.items()},
        }
        if label is not None:
            colour = colours.get(label, rgb(COLOURS[-1]))
            packed = (255 << 24) + (colour[0] << 16) + (colour[1] << 8) + colour[2]
            # colorRGB: a signed integer, which releases before 0.4 read; later ones read color
            properties["classification"] = {"name": label, "color": list(colour), "colorRGB": packed - (1 << 32)}
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.UUID(ids[row])),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
        )
    return {"type": "FeatureCollection", "features": features}


def write_geojson(file: Path, collection: dict[str, Any]) -> None:
    """Write the text, whole or not at all."""
    write_text(file, json.dumps(collection, separators=(",", ":"), allow_nan=False, ensure_ascii=False) + "\n")


def drawn_values(
    predictions: Sequence[Prediction], probe: Probe, *, of: str | None
) -> tuple[NDArray[np.float64], str, tuple[float, float]]:
    """What a heat map shows, (rows,): its values, its name, and the ends of its scale.

    `of`: a class, whose probability is drawn; None: of two classes the second one, of more the one with the highest
    mean probability, of a number its value.

    Raises:
        UserError: the probe has no such class.
    """
    if probe.kind == "regression":
        values = np.array([one.value for one in predictions], np.float64)
        return values, "value", (float(values.min()), float(values.max()))
    if of is not None and of not in probe.classes:
        raise UserError(
            f"The probe has no class '{of}'.", remedy=f"Give one of its classes: {', '.join(probe.classes)}."
        )
    means = {name: np.mean([(one.probabilities or {})[name] for one in predictions]) for name in probe.classes}
    chosen = of or (probe.classes[1] if len(probe.classes) == 2 else max(means, key=lambda name: means[name]))
    values = np.array([(one.probabilities or {})[chosen] for one in predictions], np.float64)
    return values, f"probability of {chosen}", (0.0, 1.0)


def heat_map(tiles: SlideTiles, values: NDArray[np.float64], ends: tuple[float, float]) -> Pixels:
    """Colours of the tiles' values over the slide's overview (on plain grey without one), (H, W, 3) uint8.

    values: of all rows of the table. The longest side has 1024 pixels.
    """
    width, height = tiles.size or tuple((tiles.corners.max(0) + tiles.side).astype(int).tolist())
    scale = PICTURE / max(width, height)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    if tiles.picture is None:
        below = np.full((*shape, 3), GLASS, np.uint8)
    else:
        given = tiles.picture if tiles.picture.ndim == 3 else np.repeat(tiles.picture[:, :, None], 3, axis=2)
        grey = cv2.cvtColor(cv2.resize(given, shape[::-1], interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        below = np.repeat(grey[:, :, None], 3, axis=2)
    low, high = ends
    share = np.clip((values[tiles.rows] - low) / ((high - low) or 1.0), 0, 1)
    colours = _colours(share)
    out = below.astype(np.float32)
    for (x, y), colour in zip(tiles.corners * scale, colours, strict=True):
        left, top = round(x), round(y)
        right, bottom = round(x + tiles.side * scale), round(y + tiles.side * scale)
        part = out[top : max(bottom, top + 1), left : max(right, left + 1)]
        part[:] = (1 - STRENGTH) * part + STRENGTH * colour
    return np.rint(out).astype(np.uint8)


def _colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(n,) from 0 to 1 -> (n, 3): from blue over green to yellow (viridis), which also the colour-blind can order."""
    row = np.rint(share * 255).astype(np.uint8)[None]
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(row, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)[0])


def write_heat_page(
    file: Path,
    slides: Sequence[SlideTiles],
    values: NDArray[np.float64],
    what: str,
    ends: tuple[float, float],
    *,
    notes: Sequence[str] = (),
) -> None:
    """Write a page with the map of each slide, its mean and highest value, and the scale."""
    figures = [
        {
            "name": one.name,
            "tiles": len(one.rows),
            "mean": float(values[one.rows].mean()),
            "highest": float(values[one.rows].max()),
            "picture": data_uri(heat_map(one, values, ends), longest=PICTURE),
        }
        for one in slides
    ]
    scale = np.repeat(_colours(np.linspace(0, 1, 256))[None], 16, axis=0)
    page = render_page(
        "lejepa_med.export",
        "heat.html.j2",
        title=f"Heat map: {what}",
        slides=figures,
        scale=data_uri(scale, longest=256),
        low=ends[0],
        high=ends[1],
        what=what,
        notes=notes,
    )
    write_text(file, page)


def write_heat_picture(file: Path, tiles: SlideTiles, values: NDArray[np.float64], ends: tuple[float, float]) -> None:
    """Write the map of one slide as PNG."""
    done, packed = cv2.imencode(".png", cv2.cvtColor(heat_map(tiles, values, ends), cv2.COLOR_RGB2BGR))
    assert done
    with new_file(file) as draft:
        draft.write_bytes(packed.tobytes())


def targets(out: Path, slides: Sequence[SlideTiles], suffix: str) -> Iterator[tuple[Path, SlideTiles]]:
    """The file of each slide: `out` itself of one slide, else OUT/NAME.suffix.

    Raises:
        UserError: several slides and one file.
    """
    if out.suffix.lower() == suffix:
        if len(slides) > 1:
            raise UserError(
                f"The table holds {len(slides)} slides, and a {suffix} file is of one slide.",
                remedy=f"Give a folder: --as {suffix[1:]} --out FOLDER",
            )
        yield out, slides[0]
        return
    out.mkdir(parents=True, exist_ok=True)
    names = [one.name for one in slides]
    for one in slides:
        alone = names.count(one.name) == 1  # of slides with one name in two folders, the id tells which is which
        yield out / f"{one.name if alone else f'{one.name}-{one.slide[:8]}'}{suffix}", one


def vectors_of(folder: Path) -> tuple[EmbeddingTable, NDArray[np.float32]]:
    """The table and its vectors, (rows, dim)."""
    table = EmbeddingTable.open(folder)
    return table, np.asarray(table.vectors, np.float32)
