"""A galaxy archive: FITS cut-outs in g, r, z with the pixel scale, depth and seeing of the DESI Legacy Surveys.

Size, brightness, colour, orientation, inclination, pitch, seeing and neighbours are drawn over ranges that the classes
share, so that the shape tells the class and mean colour or brightness hardly does.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from examples.demo import profiles
from examples.demo.common import Label, Progress, generators, parallel, smooth_noise, split_of, write_labels
from examples.demo.profiles import Arms, Array, Grid

BANDS = ("g", "r", "z")
PIXEL_SCALE = 0.262  # arcsec/px, the Legacy Surveys' cut-out scale
OVERSAMPLE = 2
CLASSES = ("elliptical", "spiral", "edge_on", "merger")
SHARE = (0.3, 0.3, 0.2, 0.2)
PER_FIELD = 20
FIRST_ID = 587_722_981_741_363_201  # object ids like those of SDSS: no float holds them exactly
# Seeing and sky noise by band (median, log-spread): Stein et al. 2021 (arXiv:2110.13151) measured them on the survey.
# Seeing is the Gaussian sigma in pixels, noise is nanomaggies per pixel.
SEEING = ((2.40, 0.11), (2.15, 0.12), (2.02, 0.13))
NOISE = ((0.0031, 0.20), (0.0043, 0.20), (0.0118, 0.15))
# Variance per flux of source photons, nanomaggies: about three exposures of a 4 m telescope.
PHOTON = 1.5e-5


def flux(rng: np.random.Generator, mag_r: float, *, g_r: float, spread: float) -> Array:
    """Total flux in g, r, z in nanomaggies (AB zero point 22.5) from an r magnitude and a colour g-r.

    Galaxies and stars lie near one line in (g-r, r-z), here r-z = 0.1 + 0.65 (g-r) with .03 mag of scatter.
    """
    g_r = rng.normal(g_r, spread)
    r_z = rng.normal(0.1 + 0.65 * g_r, 0.03)
    magnitudes = np.array([mag_r + g_r, mag_r, mag_r - r_z])
    return (10 ** (0.4 * (22.5 - magnitudes))).astype(np.float32)


def add(cube: Array, light: Array, fluxes: Array) -> None:
    """Add a component of unit flux to `cube` (3, H, W) in place."""
    cube += light[None] * fluxes[:, None, None].astype(np.float32)


@dataclass(frozen=True)
class Target:
    """What the classes share: brightness, size, place and orientation of the galaxy in the middle."""

    mag: float
    r_e: float
    centre: tuple[float, float]
    angle: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Target":
        """R 15.6-17.8, half-light radius 1.8-4.5 arcsec, pointing error of a few pixels."""
        x, y = rng.normal(0, 0.45, 2)
        return cls(rng.uniform(15.6, 17.8), rng.uniform(1.8, 4.5), (float(x), float(y)), rng.uniform(0, np.pi))


def elliptical(grid: Grid, rng: np.random.Generator) -> Array:
    """E0-E6: one Sérsic body with n about 4."""
    t = Target.draw(rng)
    cube = np.zeros((3, *grid.x.shape), np.float32)
    body = profiles.sersic(
        grid, n=rng.uniform(3, 5.5), r_e=t.r_e, q=rng.uniform(0.4, 1), angle=t.angle, centre=t.centre
    )
    add(cube, body, flux(rng, t.mag, g_r=0.76, spread=0.1))
    return cube


def spiral(grid: Grid, rng: np.random.Generator) -> Array:
    """Bulge, exponential disc, logarithmic arms with blue knots, and a bar in every third."""
    t = Target.draw(rng)
    h = t.r_e / 1.3
    inclination = np.arccos(rng.uniform(0.5, 1))
    arms = Arms(
        number=int(rng.choice([2, 2, 2, 3, 4])),
        pitch=np.deg2rad(rng.uniform(12, 30)),
        hand=int(rng.choice([-1, 1])),
        phase=rng.uniform(0, 2 * np.pi),
        sharpness=rng.uniform(1.5, 4),
    )
    disc, crests = profiles.spiral_disc(
        grid, rng, h=h, inclination=inclination, angle=t.angle, centre=t.centre, arms=arms
    )
    total = flux(rng, t.mag, g_r=0.66, spread=0.12)
    bulge, arm = rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.55)
    blue, red = np.array([1.3, 1.0, 0.85]), np.array([0.8, 1.0, 1.12])
    cube = np.zeros((3, *grid.x.shape), np.float32)
    light = profiles.sersic(
        grid, n=rng.uniform(1, 3), r_e=0.35 * h, q=rng.uniform(0.7, 1), angle=t.angle, centre=t.centre
    )
    add(cube, light, bulge * total * red)
    add(cube, disc, (1 - bulge) * (1 - arm) * total)
    add(cube, crests, (1 - bulge) * arm * 0.8 * total * blue)
    sites = profiles.knots(grid, rng, crests, count=int(rng.integers(12, 50)))
    add(cube, sites, (1 - bulge) * arm * 0.2 * total * blue**2)
    if rng.random() < 0.35:
        turn = t.angle + rng.uniform(0, np.pi)
        add(cube, profiles.bar(grid, length=0.9 * h, q=0.35, angle=turn, centre=t.centre), 0.12 * total * red)
    return cube


def edge_on(grid: Grid, rng: np.random.Generator) -> Array:
    """A thin disc from the side with its bulge, cut by a dust lane that reddens."""
    t = Target.draw(rng)
    h = t.r_e / 1.4
    z0 = h * rng.uniform(0.12, 0.28)
    total = flux(rng, t.mag + 0.3, g_r=0.68, spread=0.12)
    bulge = rng.uniform(0.05, 0.4)
    cube = np.zeros((3, *grid.x.shape), np.float32)
    body = profiles.sersic(
        grid, n=rng.uniform(1, 4), r_e=0.4 * h, q=rng.uniform(0.6, 0.9), angle=t.angle, centre=t.centre
    )
    add(cube, body, bulge * total * np.array([0.85, 1.0, 1.1]))
    add(cube, profiles.edge_on_disc(grid, h=h, z0=z0, angle=t.angle, centre=t.centre), (1 - bulge) * total)
    lane = profiles.dust_lane(
        grid, h=1.4 * h, z0=0.45 * z0, offset=rng.normal(0, 0.3 * z0), angle=t.angle, centre=t.centre
    )
    # Depths in g, r, z relate as the Milky Way's extinction: 3.24, 2.18, 1.22 (Schlafly & Finkbeiner 2011, Table 6).
    depth = rng.uniform(0.2, 1.5) * np.array([1.0, 0.67, 0.38], np.float32)
    cube *= np.exp(-depth[:, None, None] * lane[None].astype(np.float32))
    return cube


def merger(grid: Grid, rng: np.random.Generator) -> Array:
    """Two nuclei in disturbed bodies, one or two tidal tails, and bursts of star formation."""
    t = Target.draw(rng)
    cube = np.zeros((3, *grid.x.shape), np.float32)
    total = flux(rng, t.mag, g_r=0.64, spread=0.14)
    ratio, apart = rng.uniform(0.25, 0.5), t.r_e * rng.uniform(0.8, 1.8)
    tail_share = rng.uniform(0.12, 0.25)
    across = np.array([np.cos(t.angle), np.sin(t.angle)]) * apart
    bend = rng.uniform(1.0, 3.0) * rng.choice([-1, 1])
    sides = ((1 - ratio, -ratio * across, t.angle + np.pi), (ratio, (1 - ratio) * across, t.angle))
    tails = 2 if rng.random() < 0.6 else 1
    for index, (share, shift, outward) in enumerate(sides):
        centre = (t.centre[0] + float(shift[0]), t.centre[1] + float(shift[1]))
        colour = np.array([1.0, 1.0, 1.0]) + rng.normal(0, 0.08) * np.array([1.0, 0.0, -0.7])
        body = profiles.sersic(
            grid,
            n=rng.uniform(1, 3.5),
            r_e=t.r_e * rng.uniform(0.4, 0.7) * np.sqrt(share / 0.5),
            q=rng.uniform(0.45, 0.9),
            angle=rng.uniform(0, np.pi),
            centre=centre,
        )
        add(cube, body, share * (1 - tail_share) * total * colour)
        if index < tails:
            tail = profiles.tidal_tail(
                grid,
                start=centre,
                heading=outward - bend / 3 + rng.normal(0, 0.3),
                bend=bend,
                length=t.r_e * rng.uniform(2.5, 4.5),
                width=rng.uniform(0.45, 0.8),
            )
            add(cube, tail, tail_share / tails * total * np.array([1.1, 1.0, 0.95]))
    bursts = profiles.knots(grid, rng, cube[1] ** 0.7, count=int(rng.integers(5, 20)))
    add(cube, bursts, rng.uniform(0.02, 0.08) * total * np.array([1.5, 1.0, 0.8]))
    return disturbed(cube, grid, rng, reach=t.r_e)


def disturbed(cube: Array, grid: Grid, rng: np.random.Generator, *, reach: float) -> Array:
    """`cube` pulled out of symmetry by a smooth displacement of about a fifth of `reach`."""
    side = grid.x.shape[0]
    rows, cols = np.mgrid[:side, :side].astype(np.float32)
    cell, strength = 1.2 * reach / grid.step, 0.2 * reach / grid.step
    map_x = cols + strength * smooth_noise(rng, (side, side), cell=cell)
    map_y = rows + strength * smooth_noise(rng, (side, side), cell=cell)
    return np.stack([cv2.remap(plane, map_x, map_y, cv2.INTER_LINEAR) for plane in cube])


def surroundings(grid: Grid, rng: np.random.Generator) -> Array:
    """Faint neighbours and foreground stars anywhere in the field."""
    cube = np.zeros((3, *grid.x.shape), np.float32)
    reach = float(grid.x.max())
    for _ in range(rng.poisson(2.5)):
        light = profiles.sersic(
            grid,
            n=rng.uniform(0.8, 3),
            r_e=rng.uniform(0.3, 1.1),
            q=rng.uniform(0.3, 1),
            angle=rng.uniform(0, np.pi),
            centre=(rng.uniform(-reach, reach), rng.uniform(-reach, reach)),
        )
        add(cube, light, flux(rng, rng.uniform(19, 22.5), g_r=0.8, spread=0.35))
    for _ in range(rng.poisson(1.0)):
        star = np.zeros(grid.x.shape, np.float32)
        star[tuple(rng.integers(0, grid.x.shape[0], 2))] = 1
        add(cube, star, flux(rng, rng.triangular(16.5, 21, 22), g_r=0.9, spread=0.4))
    return cube


def observe(sky: Array, rng: np.random.Generator) -> Array:
    """The oversampled sky as the survey sees it: binned, blurred by each band's seeing, with sky and photon noise."""
    bands, side = sky.shape[0], sky.shape[1] // OVERSAMPLE
    binned = sky.reshape(bands, side, OVERSAMPLE, side, OVERSAMPLE).sum((2, 4))
    night = rng.normal(0, 1)  # a bad night is bad in every band
    image = np.empty_like(binned)
    for band, ((sigma, spread), (noise, noise_spread)) in enumerate(zip(SEEING, NOISE, strict=True)):
        fwhm = 2.355 * sigma * np.exp(spread * (0.8 * night + 0.6 * rng.normal()))
        seen = cv2.filter2D(binned[band], -1, profiles.moffat(fwhm=fwhm), borderType=cv2.BORDER_REPLICATE)
        sky_noise = noise * np.exp(noise_spread * rng.normal())
        spread_map = np.sqrt(sky_noise**2 + PHOTON * np.maximum(seen, 0))
        image[band] = seen + spread_map * rng.standard_normal(seen.shape, np.float32)
    observed: Array = image
    return observed


def draw(kind: str, rng: np.random.Generator, *, size: int) -> Array:
    """One cut-out of class `kind`: (3, size, size) float32, nanomaggies per pixel in g, r, z."""
    grid = Grid.square(size * OVERSAMPLE, PIXEL_SCALE / OVERSAMPLE)
    painters = {"elliptical": elliptical, "spiral": spiral, "edge_on": edge_on, "merger": merger}
    return observe(painters[kind](grid, rng) + surroundings(grid, rng), rng)


def write_fits(path: Path, cube: Array, *, ra: float, dec: float) -> None:
    """`cube` (3, H, W) as a FITS cut-out with bands, sky position (degrees) and a tangential world system."""
    from data_adapters.errors import require

    fits = require("astropy.io.fits", extra="galaxy")
    header = fits.Header()
    header["BUNIT"] = ("nanomaggy", "AB magnitude = 22.5 - 2.5 log10(flux)")
    header["BANDS"] = (",".join(BANDS), "filters, in the order of the planes")
    for index, band in enumerate(BANDS):
        header[f"BAND{index}"] = band
    header["PIXSCALE"] = (PIXEL_SCALE, "arcsec per pixel")
    header["RA"], header["DEC"] = (ra, "degrees, ICRS"), (dec, "degrees, ICRS")
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = ra, dec
    header["CRPIX1"] = header["CRPIX2"] = (cube.shape[1] + 1) / 2
    header["CD1_1"], header["CD1_2"] = -PIXEL_SCALE / 3600, 0.0
    header["CD2_1"], header["CD2_2"] = 0.0, PIXEL_SCALE / 3600
    header["ORIGIN"] = ("lejepa-med demo", "made image, no real sky")
    fits.PrimaryHDU(cube.astype(np.float32), header).writeto(path, overwrite=True)


@dataclass(frozen=True)
class _Job:
    folder: Path
    name: str
    kind: str
    ra: float
    dec: float
    size: int
    rng: np.random.Generator


def _make(job: _Job) -> None:
    write_fits(job.folder / job.name, draw(job.kind, job.rng, size=job.size), ra=job.ra, dec=job.dec)


def make(
    folder: Path,
    *,
    n: int = 2000,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `n` cut-outs of `size` pixels below `folder`/images, and labels.csv; returns the table's path.

    Galaxies are observed in fields of 20 that lie degrees apart; the field is the group, and whole fields go to `val`.
    The table has an object id of 64 bits, as surveys have.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    fields = -(-n // PER_FIELD)
    rng = np.random.default_rng([seed, 1])
    # A golden-angle lattice between declinations -50 and 50: neighbouring fields are degrees apart.
    centre_dec = np.rad2deg(np.arcsin(np.linspace(-0.77, 0.77, fields)))
    centre_ra = (np.arange(fields) * 222.4922) % 360
    order = rng.permutation(fields)  # which field is used for validation must not depend on its declination
    kinds = rng.choice(CLASSES, size=n, p=SHARE)
    jobs, rows = [], []
    for index, child in enumerate(generators(seed, n)):
        field = index // PER_FIELD
        place = order[field]
        dec = float(centre_dec[place] + rng.uniform(-0.2, 0.2))
        ra = float((centre_ra[place] + rng.uniform(-0.2, 0.2)) % 360)
        name = f"cutout-{index:05d}.fits"
        jobs.append(_Job(images, name, str(kinds[index]), ra, dec, size, child))
        rows.append(
            Label(
                path=f"images/{name}",
                label=str(kinds[index]),
                group=f"field-{field:03d}",
                split=split_of(field, fields),
                extra=(("objid", str(FIRST_ID + 65_536 * field + index)),),
            )
        )
    parallel(_make, jobs, workers=workers, progress=progress)
    return write_labels(folder, rows)
