"""Plots: values at the right place, gaps, ticks, spikes that survive thinning; heat maps with flags."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from lejepa_med.plot import Axis, Series, curves, make_axis, plane, plot, spectra, thin
from lejepa_med.research.stability.grid import HeatCell, heat_map

NAN = float("nan")


@pytest.mark.parametrize(("log", "middle"), [(False, 50.5), (True, 10.0)])
def test_an_axis_maps_values_to_pixels(log: bool, middle: float) -> None:
    axis = Axis(1.0, 100.0, 200.0, 0.0, log=log)
    assert (axis.at(1), axis.at(100), axis.at(middle)) == (200, 0, pytest.approx(100))


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.3, 0.31), (-5.0, 1e6), (1e-9, 2e-9), (3.0, 3.0), (0.0, 0.0)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_round_and_inside(span: tuple[float, float], log: bool) -> None:
    axis = make_axis(span, start=0, end=100, log=log)
    ticks = axis.ticks(5)
    assert 1 <= len(ticks) <= 8 and all(axis.low <= t <= axis.high for t in ticks)
    assert all(float(f"{t:.3g}") == pytest.approx(t, rel=1e-9) for t in ticks)


def test_ticks_of_decades() -> None:
    assert Axis(0.9, 1100.0, 0, 1, log=True).ticks(5) == [1, 10, 100, 1000]


def test_a_plot_is_xml_with_a_line_a_legend_and_escaped_text() -> None:
    series = [Series(points=[(0, 1), (1, 2), (2, NAN), (3, 4)], label="<a>"), Series(points=[(0, NAN)], label="b")]
    picture = plot(series, y_label="<y>", marks=[(1.5, "here")], levels=[(3, "chance")])
    root = ElementTree.fromstring(picture)
    texts = [node.text for node in root.iter() if node.text]
    assert {"<a>", "<y>", "here", "chance", "step"} <= set(texts) and "b" not in texts
    (line,) = [node.get("d", "") for node in root.iter() if node.get("stroke-linejoin")]
    points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]
    assert line.count("M") == 2 and len(points) == 3
    steps = (points[1][0] - points[0][0], points[2][0] - points[1][0])
    assert steps[1] == pytest.approx(2 * steps[0], abs=0.2)
    assert points[0][1] > points[1][1] > points[2][1]  # upwards on the page


def test_a_long_legend_takes_lines_and_a_band_lies_inside() -> None:
    names = [f"an encoder with a long name, number {k}" for k in range(5)]
    series = [Series(points=[(1, 0.5), (9, 0.6)], label=name, band=[(1, 0.2, 0.8), (9, 0.5, 0.7)]) for name in names]
    root = ElementTree.fromstring(plot(series, width=700, height=300))
    placed = {
        node.text: (float(node.get("x", "")), float(node.get("y", ""))) for node in root.iter() if node.text in names
    }
    assert set(placed) == set(names) and len({y for _, y in placed.values()}) == 3
    assert all(x + 6 * len(name or "") < 700 for name, (x, _) in placed.items())
    areas = [node.get("d", "") for node in root.iter() if node.get("fill-opacity") == ".13"]
    edges = [float(y) for area in areas for y in re.findall(r"[ML][\d.]+ ([\d.]+)", area)]
    assert len(areas) == 5 and max(y for _, y in placed.values()) < min(edges) < max(edges) < 260


def test_nothing_to_draw_is_no_picture() -> None:
    assert plot([Series(points=[(0, NAN)])]) == "" and plot([]) == ""
    assert "<circle" in plot([Series(points=[(4, 2)])])


def test_thinning_keeps_spikes_ends_and_order() -> None:
    values = np.sin(np.arange(50_000) / 5000)
    values[12_345] = 90.0
    kept = thin([(float(k), float(v)) for k, v in enumerate(values)])
    assert len(kept) <= 600 and (12_345.0, 90.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_two_parts_share_one_plot_and_null_is_a_gap() -> None:
    rows = [{"step": k, "a": None if k == 3 else k, "b": 2.0 * k} for k in range(6)]
    picture = curves(rows, {"a": "backbone", "b": "projector", "missing": "x"})
    assert "backbone" in picture and "projector" in picture and ">x<" not in picture
    assert [d.count("M") for d in re.findall(r'<path d="([^"]+)"[^>]*linejoin', picture)] == [2, 1]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_spectra_of_first_middle_and_last(count: int) -> None:
    online = [{"epoch": float(k), "backbone/spectrum": [[i, 0.5**i] for i in range(1, 9)]} for k in range(count)]
    picture = spectra(online, "backbone")
    assert [f"epoch {k}" in picture for k in range(count)].count(True) == min(3, count)
    assert f"epoch {count - 1}" in picture and spectra(online, "projector") == ""


def test_the_plane_fades_in() -> None:
    dots = re.findall(r'fill-opacity="([\d.]+)"', plane([{"sigreg": 9.0 - k, "invariance": 1.0} for k in range(8)]))
    assert len(dots) == 8 and dots == sorted(dots) and dots[-1] == "1.00"
    assert plane([{"loss": 1.0}]) == ""


def test_a_heat_map_shows_values_flags_and_blanks() -> None:
    cells = {
        (".01", "32"): HeatCell(0.1, "3.1 of 64", "collapsed", alarm=True, title="a < b"),
        (".05", "32"): HeatCell(1.0, "60.0 of 64"),
    }
    names = {"rows": [".01", ".05"], "columns": ["32", "128"], "row_label": "lambda", "column_label": "batch"}
    picture = heat_map(cells, low=0, high=1, **names)  # type: ignore[arg-type]
    root = ElementTree.fromstring(picture)
    boxes = [node for node in root.iter() if node.tag.endswith("rect")]
    assert len(boxes) == 4 and [box.get("stroke-width") for box in boxes].count("3") == 1
    assert [float(box.get("fill-opacity", "")) for box in boxes] == [0.08, 0, 0.75, 0]
    texts = [node.text for node in root.iter() if node.text]
    assert texts.count("–") == 2 and {"3.1 of 64", "collapsed", "a < b", "60.0 of 64"} <= set(texts)
