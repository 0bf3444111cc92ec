"""The lab page's map in headless Chromium: frames a second while panning, and seconds to the first map.

    python -m benchmarks.lab_page --out benchmarks/results/lab-page.md

The tables are made (clusters of unequal size, without thumbnails), and a real service on loopback serves them. Panning
draws one frame after the other, as fast as the page can, with points all over the window; a frame counts when the
browser has presented it (requestAnimationFrame), so a figure near 60 is the browser's own limit. The first map is timed
from opening the address in an empty browser until all points are on the canvas: the page, the ids, the principal
components that the service computes meanwhile, and the drawing.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.hardware import cpu_name, publish
from harness.launcher import Launcher
from harness.tables import write_table

SCATTER = "document.querySelector('.canvas-place')?.scatter"
PAN = """seconds => new Promise(done => {
    const scatter = document.querySelector('.canvas-place').scatter, drawing = [], times = [];
    const draw = scatter.draw.bind(scatter);
    scatter.draw = () => { const began = performance.now(); draw(); drawing.push(performance.now() - began) };
    const began = performance.now();
    const step = now => {
        times.push(now);
        if (now - began > 1000 * seconds) return done({ times, drawing });
        scatter.pan(3 * Math.cos(now / 300), 2 * Math.sin(now / 400));
        requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
})"""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000, help="points that are panned")
    parser.add_argument("--vectors", type=int, default=20_000, help="vectors of the first map")
    parser.add_argument("--dim", type=int, default=384, help="length of a vector")
    parser.add_argument("--seconds", type=float, default=10.0, help="time of panning")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        _make(runs / "large", options.points, options.dim)
        for number in range(options.repeats):
            _make(runs / f"first-{number}", options.vectors, options.dim, seed=number)
        with Launcher(environment={"LEJEPA_SALT": "x"}) as launcher, sync_playwright() as playwright:
            launcher.use(runs, Path(place) / "data", Path(place))
            address = launcher.service().address
            browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            first = [_first_map(browser, address, f"first-{n}", options.vectors) for n in range(options.repeats)]
            again = [_first_map(browser, address, f"first-{n}", options.vectors) for n in range(options.repeats)]
            large = _first_map(browser, address, "large", options.points)
            rates = [_pan(browser, address, options) for _ in range(options.repeats)]
            version = browser.version
            browser.close()
    publish(_page(options, version, load, first, again, large, rates), options.out)


def _make(folder: Path, count: int, dim: int, *, seed: int = 0) -> None:
    """An embedding table of vectors in 30 clusters of unequal size."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (30, dim)).astype(np.float32)
    sizes = rng.dirichlet(np.ones(30))
    found = rng.standard_normal((count, dim), np.float32)
    found += centres[rng.choice(30, count, p=sizes)]
    write_table(folder, found, shard_rows=50_000)
    about = folder / "embedding.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "failed": 0}))


def _open(browser: Browser, address: str, name: str, points: int) -> tuple[Page, float]:
    """The map's page, and the seconds until its points are drawn."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    began = time.perf_counter()
    page.goto(f"{address}/#/archives/{name}/map")
    while page.evaluate(f"{SCATTER}?.frame && {SCATTER}.pending === 0 ? {SCATTER}.count : 0") != points:
        time.sleep(0.02)
        if time.perf_counter() - began > 300:
            raise TimeoutError(f"no map of {name}: {page.inner_text('main')}")
    return page, time.perf_counter() - began


def _first_map(browser: Browser, address: str, name: str, points: int) -> float:
    page, seconds = _open(browser, address, name, points)
    page.context.close()
    return seconds


def _pan(browser: Browser, address: str, options: argparse.Namespace) -> dict[str, float]:
    """Frames a second, the longest twentieth of frames, and the time of drawing alone."""
    page, _ = _open(browser, address, "large", options.points)
    page.wait_for_timeout(1000)
    found = page.evaluate(PAN, options.seconds)
    page.context.close()
    gaps = np.diff(found["times"])
    return {
        "rate": 1000 * len(gaps) / float(gaps.sum()),
        "p95": float(np.percentile(gaps, 95)),
        "draw": statistics.median(found["drawing"]),
    }


def _page(
    options: argparse.Namespace,
    version: str,
    load: float,
    first: list[float],
    again: list[float],
    large: float,
    rates: list[dict[str, float]],
) -> str:
    def spread(values: list[float], digits: int = 1) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    return f"""# The lab page's map

{date.today()}. {cpu_name()}, {os.cpu_count()} processors, no GPU, headless Chromium {version}, window of 1440 x 900
pixels; service and browser on the same machine. Load average {load:.1f} at the start: where that is more than the
processors, other work shared the machine. Vectors of {options.dim} numbers.
Median of {options.repeats}, with the range.

| what | measured | aim |
|---|---:|---:|
| {options.points:,} points, frames a second while panning | {spread([one["rate"] for one in rates])} | 30 |
| time between frames that 95 % keep, ms | {spread([one["p95"] for one in rates])} | |
| drawing one frame, ms | {spread([one["draw"] for one in rates])} | |
| first map of {options.vectors:,} vectors, s (page, ids, principal components, points) | {spread(first)} | 5 |
| the same map opened again, s | {spread(again)} | |
| first map of {options.points:,} vectors, s | {large:.1f} | |

Again with: `python -m benchmarks.lab_page --points {options.points} --vectors {options.vectors}`
"""


if __name__ == "__main__":
    main()
