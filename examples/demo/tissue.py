"""Stain planes of H&E-like tissue at 0.5 um per pixel: fibres, glands, and nuclei of the main cell types.

A plane is uint8: amount of one stain, 100 units to one optical density (log10). Drawing on the planes instead of on
colour means that slides differ in stain as real ones do: in optical density.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from examples.demo.common import smooth_noise

Array = np.ndarray
SHIFT = 4  # OpenCV draws at 1/16 pixel, so a small nucleus keeps its shape
CELL = 16  # masks are coarse: one mask pixel is 16 slide pixels


@dataclass
class Stains:
    """Haematoxylin and eosin planes, each (H, W) uint8."""

    h: Array
    e: Array


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """A cell type's nuclei: `radius` (mean, log-spread) in pixels, range of long/short `aspect`, `dark` (mean, spread).

    `vesicular` is the share of nuclei that are pale with a dark rim and a nucleolus.
    """

    radius: tuple[float, float]
    aspect: tuple[float, float]
    dark: tuple[float, float]
    vesicular: float = 0.0


# At 0.5 um per pixel: lymphocytes 6-7 um across, epithelium 7-9, carcinoma 9-18, fibroblasts long and thin.
LYMPHOCYTE = Nuclei(radius=(6.0, 0.10), aspect=(1.0, 1.2), dark=(95, 12))
EPITHELIUM = Nuclei(radius=(7.0, 0.12), aspect=(1.4, 2.0), dark=(85, 12), vesicular=0.2)
FIBROBLAST = Nuclei(radius=(5.0, 0.2), aspect=(2.2, 4.5), dark=(82, 14))
CARCINOMA = Nuclei(radius=(10.5, 0.27), aspect=(1.0, 1.7), dark=(82, 18), vesicular=0.6)


def draw_nuclei(
    plane: Array, points: Array, rng: np.random.Generator, *, kind: Nuclei, angles: Array | None = None
) -> None:
    """Draw one nucleus at every point (n, 2: x, y) into a haematoxylin `plane`, in place.

    `angles` (radians) give the direction of the long axes; without them it is random.
    """
    n = len(points)
    size = kind.radius[0] * np.exp(kind.radius[1] * rng.standard_normal(n))
    aspect = rng.uniform(*kind.aspect, n)
    turn = np.rad2deg(rng.uniform(0, np.pi, n) if angles is None else angles + rng.normal(0, 0.15, n))
    dark = np.clip(rng.normal(*kind.dark, n), 35, 160)
    vesicular = rng.random(n) < kind.vesicular
    axes = np.rint(np.stack([size * np.sqrt(aspect), size / np.sqrt(aspect)], 1) * (1 << SHIFT)).astype(int)
    centres = np.rint(points * (1 << SHIFT)).astype(int)
    spots = np.rint((points + rng.normal(0, 0.25, (n, 2)) * size[:, None]) * (1 << SHIFT)).astype(int)
    for i in range(n):
        centre, axis = centres[i].tolist(), axes[i].tolist()
        fill = 0.66 * dark[i] if vesicular[i] else dark[i]
        cv2.ellipse(plane, centre, axis, turn[i], 0, 360, float(fill), -1, cv2.LINE_AA, SHIFT)
        if vesicular[i]:
            cv2.ellipse(plane, centre, axis, turn[i], 0, 360, float(1.1 * dark[i]), 2, cv2.LINE_AA, SHIFT)
            spot = int(0.22 * size[i] * (1 << SHIFT))
            cv2.circle(plane, spots[i].tolist(), spot, float(1.4 * dark[i]), -1, cv2.LINE_AA, SHIFT)


def scattered(
    rng: np.random.Generator, mask: Array, *, spacing: float, keep: float = 1.0, jitter: float = 0.36
) -> Array:
    """Points on a grid of `spacing` pixels where the coarse boolean `mask` holds, (n, 2: x, y).

    `keep` is the share of points that stay, `jitter` the displacement in units of the spacing.
    """
    rows, cols = np.arange(0, mask.shape[0] * CELL, spacing), np.arange(0, mask.shape[1] * CELL, spacing)
    y, x = np.meshgrid(rows, cols, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * (spacing / 2)  # hexagonal packing shows no rows and columns
    points = np.stack([x.ravel(), y.ravel()], 1)
    points += rng.uniform(-jitter, jitter, points.shape) * spacing
    cell = (points // CELL).astype(int)
    inside = (cell >= 0).all(1) & (cell[:, 0] < mask.shape[1]) & (cell[:, 1] < mask.shape[0])
    points, cell = points[inside], cell[inside]
    chosen = mask[cell[:, 1], cell[:, 0]] & (rng.random(len(points)) < keep)
    found: Array = points[chosen]
    return found


def fibres(rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    """Wavy collagen: (texture (side, side) float32 of unit spread, coarse direction (side/16, side/16) in radians)."""
    half, coarse = side // 2, side // CELL
    strands = cv2.GaussianBlur(rng.standard_normal((half, half), np.float32), (0, 0), sigmaX=16, sigmaY=1.1)
    strands += 0.5 * cv2.GaussianBlur(rng.standard_normal((half, half), np.float32), (0, 0), sigmaX=30, sigmaY=3)
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[:coarse, :coarse].astype(np.float32) * np.float32(half / coarse)
    u = np.cos(turn) * x + np.sin(turn) * y + 60 * smooth_noise(rng, x.shape, cell=12)
    v = np.cos(turn) * y - np.sin(turn) * x + 110 * smooth_noise(rng, x.shape, cell=25)
    v += 12 * smooth_noise(rng, x.shape, cell=5)
    v_y, v_x = np.gradient(v)
    direction = np.arctan2(v_y, v_x) + np.pi / 2  # strands run along lines of constant v
    map_u, map_v = (cv2.resize(field.astype(np.float32), (half, half)) for field in (u, v))
    texture = cv2.remap(strands, map_u, map_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    texture = cv2.resize(texture / texture.std(), (side, side))
    return texture, direction


def draw_gland(stains: Stains, rng: np.random.Generator, *, centre: Array, radius: float) -> None:
    """A gland: cytoplasm around an empty lumen, ringed by nuclei that stand on the outer wall."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = [rng.normal(0, 0.16 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
    outline = radius * (1 + np.sum(waves, axis=0))
    ray = np.stack([np.cos(angle), np.sin(angle)], 1)
    lumen = rng.uniform(0.25, 0.5)

    def fill(scale: float, *, h: float, e: float) -> None:
        corners = np.rint((centre + ray * (scale * outline)[:, None]) * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(stains.h, [corners], h, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(stains.e, [corners], e, cv2.LINE_AA, SHIFT)

    fill(1.06, h=4, e=14)  # the basement membrane's pale cleft
    fill(1.0, h=rng.uniform(10, 18), e=rng.uniform(30, 45))
    fill(lumen, h=1, e=rng.uniform(2, 10))
    count = int(2 * np.pi * 0.8 * radius / 10.5)
    place = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.normal(0, 0.05, count)
    reach = np.interp(place, angle, outline, period=2 * np.pi) * rng.normal(0.8, 0.03, count)
    points = centre + np.stack([np.cos(place), np.sin(place)], 1) * reach[:, None]
    draw_nuclei(stains.h, points, rng, kind=EPITHELIUM, angles=place)
