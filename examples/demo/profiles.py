"""Light of galaxies on a sky grid: Sérsic bodies, spiral discs, edge-on discs and tidal tails.

Every function returns surface brightness in units of the component's total flux per pixel, so that a component in
band b adds `flux_b * shape`. Lengths are arcsec, angles radians.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.special import gamma, k1

from examples.demo.common import smooth_noise

Array = np.ndarray


@dataclass(frozen=True)
class Grid:
    """Sky offsets of pixel centres: `x`, `y` (side, side) in arcsec; `step` is the pixel size in arcsec."""

    x: Array
    y: Array
    step: float

    @classmethod
    def square(cls, side: int, step: float) -> "Grid":
        """`side` x `side` pixels of `step` arcsec around the origin."""
        axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * np.float32(step)
        x, y = np.meshgrid(axis, axis)
        return cls(x, y, step)

    def turned(self, centre: tuple[float, float], angle: float) -> tuple[Array, Array]:
        """Coordinates along and across a major axis at `angle` through `centre`."""
        dx, dy = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return dx * c + dy * s, dy * c - dx * s


def unit(light: Array) -> Array:
    """`light` scaled to a sum of one."""
    total = float(light.sum())
    return light / np.float32(total) if total > 0 else light


def sersic(
    grid: Grid, *, n: float, r_e: float, q: float, angle: float, centre: tuple[float, float] = (0.0, 0.0)
) -> Array:
    """Sérsic (1963) profile with half-light radius `r_e` along the major axis and axis ratio `q`.

    b_n after Ciotti & Bertin (1999, A&A 352, 447), total flux after Graham & Driver (2005, PASA 22, 118), eq. 4. The
    core is softened at a third of a pixel, which stands for the integral over the pixel.
    """
    b = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25515 * n**2)
    u, v = grid.turned(centre, angle)
    r = np.sqrt(u**2 + (v / np.float32(q)) ** 2 + np.float32((grid.step / 3) ** 2)) / np.float32(r_e)
    total = 2 * np.pi * r_e**2 * q * n * np.exp(b) * b ** (-2 * n) * gamma(2 * n)
    light: Array = np.exp(np.float32(-b) * (r ** np.float32(1 / n) - 1)) * np.float32(grid.step**2 / total)
    return light


def edge_on_disc(grid: Grid, *, h: float, z0: float, angle: float, centre: tuple[float, float]) -> Array:
    """Exponential disc seen edge-on: (|x|/h) K1(|x|/h) sech^2(z/z0), van der Kruit & Searle (1981, A&A 95, 105)."""
    u, v = grid.turned(centre, angle)
    x = np.maximum(np.abs(u) / h, 1e-3)
    return unit((x * k1(x) / np.cosh(np.minimum(np.abs(v) / z0, 20.0)) ** 2).astype(np.float32))


def dust_lane(grid: Grid, *, h: float, z0: float, offset: float, angle: float, centre: tuple[float, float]) -> Array:
    """Relative optical depth of a thin dust disc in front of an edge-on galaxy, at most 1."""
    u, v = grid.turned(centre, angle)
    depth: Array = np.exp(-np.abs(u) / h) / np.cosh(np.minimum(np.abs(v - offset) / z0, 20.0)) ** 2
    return depth


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Logarithmic spiral arms: number, pitch angle, handedness (+1 or -1), phase, and sharpness of the crests."""

    number: int
    pitch: float
    hand: int
    phase: float
    sharpness: float


def spiral_disc(
    grid: Grid,
    rng: np.random.Generator,
    *,
    h: float,
    inclination: float,
    angle: float,
    centre: tuple[float, float],
    arms: Arms,
) -> tuple[Array, Array]:
    """(smooth exponential disc, arm light), each of unit flux, of a thin disc of scale length `h`.

    Arm crests lie where theta = hand * ln(R/h) / tan(pitch), the logarithmic spiral; a smooth random phase makes them
    patchy as real arms are.
    """
    u, v = grid.turned(centre, angle)
    v = v / np.float32(np.cos(inclination))
    r = np.sqrt(u**2 + v**2) + np.float32(grid.step / 3)
    disc = np.exp(-r / np.float32(h))
    wander = 0.35 * smooth_noise(rng, r.shape, cell=h / grid.step)
    winding = np.arctan2(v, u) - arms.hand * np.log(r / h) / np.tan(arms.pitch)
    crest = np.exp(arms.sharpness * (np.cos(arms.number * winding - arms.phase + wander) - 1))
    patchy = np.exp(0.4 * smooth_noise(rng, r.shape, cell=0.5 * h / grid.step))
    inner = 1 - np.exp(-((r / (0.7 * h)) ** 2))
    light = np.exp(-r / np.float32(1.25 * h)) * crest * inner * patchy
    return unit(disc), unit(light.astype(np.float32))


def bar(grid: Grid, *, length: float, q: float, angle: float, centre: tuple[float, float]) -> Array:
    """A flat-topped bar, exp(-(R/length)^4) on ellipses of axis ratio `q`."""
    u, v = grid.turned(centre, angle)
    return unit(np.exp(-(((u / length) ** 2 + (v / (q * length)) ** 2) ** 2)))


def knots(grid: Grid, rng: np.random.Generator, where: Array, *, count: int) -> Array:
    """`count` unresolved sources of log-normal brightness, placed with probability `where`, unit flux in all."""
    chosen = rng.choice(where.size, size=count, p=(where / where.sum(dtype=np.float64)).ravel().astype(np.float64))
    light = np.zeros(where.size, np.float32)
    np.add.at(light, chosen, rng.lognormal(0, 0.8, count).astype(np.float32))
    return unit(cv2.GaussianBlur(light.reshape(where.shape), (0, 0), 0.15 / grid.step))


def tidal_tail(
    grid: Grid, *, start: tuple[float, float], heading: float, bend: float, length: float, width: float
) -> Array:
    """A curved tail that leaves `start` at `heading`, turns by `bend`, and fades and widens along `length`."""
    t = np.linspace(0, 1, 240)
    direction = heading + bend * t
    x = start[0] + length * np.cumsum(np.cos(direction)) / t.size
    y = start[1] + length * np.cumsum(np.sin(direction)) / t.size
    half = (grid.x.shape[0] - 1) / 2
    near, far = np.zeros_like(grid.x), np.zeros_like(grid.x)
    col, row = np.rint(x / grid.step + half).astype(int), np.rint(y / grid.step + half).astype(int)
    inside = (col >= 0) & (row >= 0) & (col < grid.x.shape[1]) & (row < grid.x.shape[0])
    light = (1 - 0.75 * t).astype(np.float32)
    np.add.at(near, (row[inside], col[inside]), (light * (1 - t))[inside].astype(np.float32))
    np.add.at(far, (row[inside], col[inside]), (light * t)[inside].astype(np.float32))
    sigma = width / grid.step
    return unit(cv2.GaussianBlur(near, (0, 0), sigma) + cv2.GaussianBlur(far, (0, 0), 1.8 * sigma))


def moffat(*, fwhm: float, beta: float = 3.0) -> Array:
    """A Moffat (1969) point-spread function of unit sum; `fwhm` in pixels."""
    half = int(np.ceil(2.5 * fwhm))
    axis = np.arange(-half, half + 1, dtype=np.float32)
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return unit((1 + (axis[:, None] ** 2 + axis[None, :] ** 2) / np.float32(alpha**2)) ** np.float32(-beta))
