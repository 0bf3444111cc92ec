"""Anatomy of a made head: soft tissue maps from warped implicit surfaces, with folded cortex and lesions.

Coordinates are mm in a head frame: x right, y anterior, z superior, origin in the middle of the brain. A surface is a
signed distance (mm, positive inside, approximate for ellipsoids); a voxel at a border holds a share of each tissue, as
real ones do (partial volume).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Array = np.ndarray
Lesion = Literal["none", "mass", "white_matter", "atrophy"]

SHAPE = (96, 112, 96)
SPACING = 2.0  # mm
ORIGIN = np.array([-95.0, -111.0, -108.0])  # mm, centre of the first voxel: the neck leaves the field below
TISSUES = ("scalp", "muscle", "bone", "marrow", "csf", "grey", "white", "lesion", "oedema", "rim")


def spline_noise(rng: np.random.Generator, *, cell: float) -> Array:
    """Smooth noise on the grid, zero mean, unit spread, SHAPE float32; `cell` is its grain in mm (cubic B-spline)."""
    bases = []
    for side in SHAPE:
        knots = int(np.ceil(side * SPACING / cell)) + 3
        distance = np.abs(np.arange(side)[:, None] * SPACING / cell + 1 - np.arange(knots)[None, :])
        near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
        bases.append(np.where(distance < 1, near, far).astype(np.float32))
    coarse = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    noise: Array = np.einsum("abc,kc->abk", coarse, bases[2])
    noise = np.einsum("jb,abk->ajk", bases[1], noise, optimize=True)
    noise = np.tensordot(bases[0], noise, 1)
    normal: Array = (noise - noise.mean()) / noise.std()
    return normal


def soft(distance: Array, width: float = SPACING) -> Array:
    """Share of a voxel of `width` mm inside a flat surface at `distance` mm from its centre."""
    share: Array = np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)
    return share


def ellipsoid(p: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Approximate signed distance (mm) to an ellipsoid; `p` is (3, ...)."""
    c, r = (np.array(v, np.float32).reshape(3, 1, 1, 1) for v in (centre, radii))
    rho = np.sqrt((((p - c) / r) ** 2).sum(0))
    distance: Array = (1 - rho) * np.float32(min(radii))
    return distance


def paired(p: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """`ellipsoid` on both sides of the midline."""
    return ellipsoid(np.concatenate([np.abs(p[:1]), p[1:]]), centre, radii)


def _empty_maps() -> Array:
    return np.zeros((len(TISSUES), *SHAPE), np.float32)


@dataclass(frozen=True)
class Head:
    """Tissue maps: `maps` (tissue, *SHAPE) float32 in [0, 1], ordered as TISSUES. What is in none of them is air."""

    maps: Array = field(default_factory=_empty_maps)

    def cover(self, name: str, share: Array) -> None:
        """Put `share` of tissue `name` over what is there."""
        touched = share > 0
        spans = [np.flatnonzero(touched.any(axis)) for axis in ((1, 2), (0, 2), (0, 1))]
        if not all(span.size for span in spans):
            return
        x, y, z = (slice(span[0], span[-1] + 1) for span in spans)
        self.maps[:, x, y, z] *= 1 - share[x, y, z]
        self.maps[TISSUES.index(name), x, y, z] += share[x, y, z]

    def tissue(self, name: str) -> Array:
        """The map of one tissue, SHAPE; a view."""
        share: Array = self.maps[TISSUES.index(name)]
        return share


def positions(rng: np.random.Generator) -> Array:
    """Head-frame position of each voxel, (3, *SHAPE) mm: small tilt and shift, own size, smooth individual warp."""
    axes = [o + SPACING * np.arange(n) for o, n in zip(ORIGIN, SHAPE, strict=True)]
    p = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    turn = np.eye(3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = np.deg2rad(rng.uniform(-7, 7))
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    size = rng.normal(1, 0.03) * np.exp(rng.normal(0, 0.025, 3))
    matrix = (turn / size).astype(np.float32)
    p = np.tensordot(matrix, p - rng.normal(0, 2, 3).astype(np.float32).reshape(3, 1, 1, 1), 1)
    return p + 1.8 * np.stack([spline_noise(rng, cell=45) for _ in range(3)])


def push_away(p: Array, centre: Array, radius: float) -> Array:
    """Positions of tissue before a mass of `radius` mm grew at `centre` and pushed it outwards, fading over 25 mm."""
    offset = p - centre.reshape(3, 1, 1, 1)
    r = np.sqrt((offset**2).sum(0)) + 1e-3
    shift = 0.55 * radius * np.exp(-np.clip(r - radius, 0, None) / 25) * np.clip(r / radius, 0, 1)
    pushed: Array = p - offset / r * shift
    return pushed


def draw_head(rng: np.random.Generator, *, lesion: Lesion) -> Head:
    """One subject's tissue maps."""
    p = positions(rng)
    head = Head()
    # The floor of the skull: deep behind, stepping up over the orbits in front.
    floor = p[2] + 42 - 26 / (1 + np.exp(np.clip((38 - p[1]) / 4, -30, 30))) + 4 * spline_noise(rng, cell=28)
    brain = np.maximum(ellipsoid(p, (0, 0, 6), (66, 84, 62)), paired(p, (40, 8, -26), (24, 40, 22)))
    brain = np.minimum(brain, floor)
    cerebellum = ellipsoid(p, (0, -46, -40), (48, 32, 24))
    vault = np.minimum(ellipsoid(p, (0, 0, 6), (68, 86, 64)), floor)
    skull = np.maximum(np.maximum(brain, cerebellum), np.maximum(vault, np.minimum(_stem(p), p[2] + 80)))
    _outside(head, p, skull, rng)
    head.cover("csf", soft(skull + 2.5))

    shrunk = lesion == "atrophy"
    mass_at, radius = np.zeros(3, np.float32), 0.0
    inner = p
    if lesion == "mass":
        radius = float(rng.uniform(13, 25))
        side = rng.choice([-1, 1])
        mass_at = np.array([side * rng.uniform(18, 42), rng.uniform(-45, 45), rng.uniform(-5, 38)], np.float32)
        inner = push_away(p, mass_at, radius)
    pial = _cortex(inner, brain, rng)
    # Depth of grey matter below the pial surface 2.5-3.5 mm; atrophy thins it and opens the sulci.
    gap = rng.uniform(1.2, 2.0) if shrunk else rng.uniform(0.2, 0.8)
    thick = gap + (rng.uniform(2.0, 2.6) if shrunk else rng.uniform(2.6, 3.4))
    head.cover("grey", soft(np.minimum(pial - gap, brain)))
    head.cover("white", soft(np.minimum(pial - thick, brain)))
    _deep(head, inner, rng, enlarged=shrunk)
    _hindbrain(head, inner, cerebellum, rng)
    if lesion == "mass":
        _mass(head, p, mass_at, radius, np.minimum(brain, skull), rng)
    if lesion == "white_matter":
        _white_matter_lesions(head, p, brain, rng)
    return head


def _stem(p: Array) -> Array:
    """Brain stem and cord: a slanted cylinder that widens at the pons."""
    axis_y = -18 + 0.25 * np.clip(p[2], -60, 0)
    pons = 6 * np.exp(-(((p[2] + 30) / 10) ** 2))
    distance: Array = np.minimum(9 + pons - np.sqrt(p[0] ** 2 + (p[1] - axis_y) ** 2), -6 - p[2])
    return distance


def _outside(head: Head, p: Array, skull: Array, rng: np.random.Generator) -> None:
    """Neck and face, scalp, bone with marrow, eyes and air cavities."""
    fat, bone = rng.uniform(4, 8), rng.uniform(5, 8)
    neck = np.minimum(56 - np.sqrt(p[0] ** 2 + (0.85 * (p[1] + 18)) ** 2), -30 - p[2])
    face = ellipsoid(p, (0, 42, -62), (58, 58, 66))
    flesh = np.maximum(neck, face)
    skin = np.maximum(skull + 2.5 + bone + fat, flesh)
    texture = spline_noise(rng, cell=12)
    head.cover("scalp", soft(skin))
    head.cover("muscle", soft(np.minimum(flesh - fat, 3 * texture + 2)))
    head.cover("bone", soft(skull + 2.5 + bone))
    head.cover("marrow", 0.7 * soft(1.0 - np.abs(skull + 2.5 + bone / 2)))
    for air in (ellipsoid(p, (0, 62, -46), (9, 24, 20)), paired(p, (24, 60, -52), (11, 13, 13)), _throat(p)):
        head.cover("bone", soft(air + 2))  # thin bone and air are equally dark
    head.cover("csf", soft(paired(p, (31, 72, -28), (12, 12, 12))))


def _throat(p: Array) -> Array:
    distance: Array = np.minimum(9 - np.sqrt((0.7 * p[0]) ** 2 + (p[1] - 22) ** 2), -58 - p[2])
    return distance


def _cortex(p: Array, brain: Array, rng: np.random.Generator) -> Array:
    """Distance (mm) from the folded pial surface into the brain.

    Sulci are sheets where a smooth random field is zero; |N| / |grad N| is the distance to such a sheet. They reach a
    limited depth below the hull. The interhemispheric fissure is one more sheet, which ends at the corpus callosum.
    """
    noise = spline_noise(rng, cell=rng.uniform(7.5, 9))
    slope = np.sqrt(sum(g**2 for g in np.gradient(noise, SPACING))) + 0.02
    depth = rng.uniform(12, 18)
    sulcus = np.abs(noise) / slope + np.clip(brain - depth, 0, None)
    callosum = ellipsoid(p, (0, -2, 4), (60, 44, 24))
    fissure = np.abs(p[0]) + np.clip(callosum, 0, None)
    distance: Array = np.minimum(np.minimum(brain, sulcus), fissure)
    return distance


def _deep(head: Head, p: Array, rng: np.random.Generator, *, enlarged: bool) -> None:
    """Basal ganglia, thalami and the ventricles; `enlarged` ventricles mark atrophy."""
    for centre, radii in (((11, -16, 4), (8, 14, 9)), ((26, 4, 1), (6, 17, 10)), ((13, 16, 8), (5, 11, 9))):
        head.cover("grey", soft(paired(p, centre, radii)))
    size = rng.uniform(1.9, 2.8) if enlarged else rng.uniform(0.7, 1.2)
    flare = 0.30 * np.clip(-p[1] - 5, 0, None) + 0.12 * np.clip(p[1] - 10, 0, None)
    arch = 0.007 * p[1] ** 2
    bent = np.stack([np.abs(p[0]) - flare, p[1], p[2] + arch])
    lateral = ellipsoid(bent, (7.0 + size, -4, 17), (3.6 * size, 34 * size**0.25, 6.5 * size**0.7))
    third = ellipsoid(p, (0, -10, 2), (1.6 * size, 12, 9))
    head.cover("csf", soft(np.maximum(lateral, third)))


def _hindbrain(head: Head, p: Array, cerebellum: Array, rng: np.random.Generator) -> None:
    """Cerebellum with its folia, brain stem, fourth ventricle."""
    head.cover("csf", soft(cerebellum + 2))
    radius = np.sqrt((p[1] + 26) ** 2 + (1.3 * (p[2] + 40)) ** 2) + 2.5 * spline_noise(rng, cell=14)
    folia = 1.5 * np.cos(2 * np.pi * radius / 7.5)
    head.cover("grey", soft(np.minimum(cerebellum, 2.4 - folia)))
    core = np.maximum(cerebellum - 15, np.minimum(cerebellum - 5, -folia - 0.5))
    head.cover("white", soft(np.maximum(core, _stem(p))))
    head.cover("csf", soft(ellipsoid(p, (0, -36, -34), (7, 4, 8))))


def _mass(head: Head, p: Array, at: Array, radius: float, brain: Array, rng: np.random.Generator) -> None:
    """An irregular mass with a necrotic core, an often enhancing rim, and oedema that spreads in white matter."""
    offset = np.sqrt(((p - at.reshape(3, 1, 1, 1)) ** 2).sum(0))
    ragged = 0.14 * radius * spline_noise(rng, cell=14)
    surface = np.minimum(radius - offset + ragged, brain - 2)
    spread = rng.uniform(5, 13)
    white = head.tissue("white").copy()
    head.cover("oedema", soft(surface + spread + 2 * ragged, 6.0) * white)
    head.cover("lesion", soft(surface))
    if rng.random() < 0.6:
        head.cover("rim", soft(2.2 - np.abs(surface - 2.2)))
    head.cover("csf", 0.8 * soft(surface - rng.uniform(0.4, 0.7) * radius))


def _white_matter_lesions(head: Head, p: Array, brain: Array, rng: np.random.Generator) -> None:
    """Eight to thirty foci of 2.5-6 mm in white matter, most of them beside the ventricles."""
    beside = np.exp(-((paired(p, (12, -4, 17), (10, 40, 12)) / 9) ** 2))
    chance = (head.tissue("white") * (brain > 8) * (p[2] > -20) * (0.08 + beside)).ravel().astype(np.float64)
    count = int(rng.integers(8, 31))
    surface = np.full(SHAPE, -50, np.float32)
    for voxel in rng.choice(chance.size, size=count, p=chance / chance.sum()):
        index = np.unravel_index(voxel, SHAPE)
        radius = rng.uniform(2.5, 6)
        reach = int(radius * 2 / SPACING) + 2
        box = tuple(slice(max(0, i - reach), i + reach + 1) for i in index)
        offset = p[(slice(None), *box)] - p[(slice(None), *index)].reshape(3, 1, 1, 1)
        stretch = rng.uniform(0.7, 1.4, 3).reshape(3, 1, 1, 1)
        surface[box] = np.maximum(surface[box], radius - np.sqrt(((offset * stretch) ** 2).sum(0)))
    head.cover("lesion", soft(surface))
