"""Stain jitter in optical density: the variation between laboratories, batches and scanners."""

import math
from typing import Literal

import cv2
import numpy as np

# Optical density of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston 2001), rows to unit length.
_RUIFROK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS: np.ndarray = _RUIFROK / np.linalg.norm(_RUIFROK, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(STAINS)


def _ihc_stains() -> np.ndarray:
    """Haematoxylin, DAB and, in the place of a third stain, what neither explains (orthogonal to both)."""
    rest = np.cross(STAINS[0], STAINS[2])
    return np.stack([STAINS[0], STAINS[2], rest / np.linalg.norm(rest)])


IHC_STAINS: np.ndarray = _ihc_stains()
_IHC_UNMIX = np.linalg.inv(IHC_STAINS)

# -ln(v / 255); black has no finite density and counts as 1.
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)


def scale_stains(
    image: np.ndarray, *, alpha: np.ndarray, beta: np.ndarray, stain: Literal["he", "ihc"] = "he"
) -> np.ndarray:
    """Replace the amount s of each stain by ``alpha * s + beta`` (Beer-Lambert: densities add up).

    The whole change is one affine map of the three optical densities: od' = ((od U) alpha + beta) M with the stain
    matrix M and its inverse U. Densities are natural logarithms, the unit in which Tellez et al. give their figures;
    `skimage.color.rgb2hed` is 13.8 times smaller, so figures must not be moved between the two.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (3,) factors for haematoxylin, eosin, DAB ("he"), or haematoxylin, DAB, rest ("ihc"); 1 changes nothing.
        beta: (3,) amounts in optical density; 0 changes nothing.
        stain: which stains the picture is unmixed into.

    Returns:
        (H, W, 3) uint8 RGB. What would be brighter than white is white.

    Raises:
        TypeError: the image is not uint8 RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"stain jitter takes (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    unmix, stains = (_UNMIX, STAINS) if stain == "he" else (_IHC_UNMIX, IHC_STAINS)
    slope = (unmix * np.asarray(alpha)) @ stains
    offset = np.asarray(beta) @ stains
    # The sign and the white level go into the map, so that one exponential gives grey levels.
    affine = np.column_stack([-slope.T, math.log(255.0) - offset]).astype(np.float32)
    levels = cv2.exp(cv2.transform(cv2.LUT(image, _DENSITY), affine))
    out: np.ndarray = cv2.convertScaleAbs(levels)
    return out


def hed_jitter(
    image: np.ndarray, rng: np.random.Generator, *, sigma: float, stain: Literal["he", "ihc"] = "he"
) -> np.ndarray:
    """HED jitter of Tellez et al. (2018, 2019).

    s' = alpha s + beta for each stain, alpha ~ U(1 - sigma, 1 + sigma), beta ~ U(-sigma, sigma). Immunohistochemistry
    has no eosin: there haematoxylin and DAB are jittered, each by its own draw, and the rest stays, so a positive cell
    keeps its brown and a negative one its blue.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: source of the six draws.
        sigma: .05 is their "light" setting (a few grey levels), .2 their "strong" one; 0 gives the image back to
            within one grey level.
        stain: "he" jitters haematoxylin, eosin and DAB (the residual of H&E); "ihc" haematoxylin and DAB.

    Raises:
        TypeError: the image is not uint8 RGB.
    """
    alpha, beta = 1 + rng.uniform(-sigma, sigma, 3), rng.uniform(-sigma, sigma, 3)
    if stain == "ihc":
        alpha[2], beta[2] = 1, 0
    return scale_stains(image, alpha=alpha, beta=beta, stain=stain)
