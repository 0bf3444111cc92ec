"""Brightness, contrast, saturation, hue and greyness as one affine map of RGB, for 8-bit pictures."""

import math

import cv2
import numpy as np

SATURATION, HUE = 0.2, 0.1  # of the factor; of a turn
# RGB -> luma and two chroma axes (FCC NTSC 1953, ITU-R BT.601 luma).
YIQ = np.asarray([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)
# The parts of every such map: what keeps luma, what keeps chroma, and what turns chroma by a quarter.
LUMA, CHROMA, QUARTER = (
    RGB @ np.asarray(part) @ YIQ
    for part in (np.diag([1, 0, 0]), np.diag([0, 1, 1]), [[0, 0, 0], [0, 0, -1], [0, 1, 0]])
)


def colour_matrix(
    view: np.ndarray, rng: np.random.Generator, *, jitter: bool, grey: bool, strength: float
) -> np.ndarray:
    """(H, W, 3) uint8 -> the same with other colours.

    `jitter`: brightness b and contrast c (about the mean luma) in 1 +- `strength`, saturation in 1 +- .2, hue turned by
    up to a tenth of a turn; `grey`: luma in all three channels. In luma and chroma each of these is linear, so that
    all are one matrix, rounded and cut to 0..255 once: x -> b (c A x + (1 - c) mean luma), where A keeps luma, scales
    chroma by the saturation and turns it by the hue. (Libraries turn the hue in HSV, which also changes luma.)
    """
    gain, offset, saturation, angle = 1.0, 0.0, 1.0, 0.0
    if jitter:
        draws = rng.uniform(-1, 1, 4).tolist()
        brightness, contrast = 1 + strength * draws[0], 1 + strength * draws[1]
        gain, offset = brightness * contrast, brightness * (1 - contrast) * float(YIQ[0] @ cv2.mean(view)[:3])
        saturation, angle = 1 + SATURATION * draws[2], 2 * math.pi * HUE * draws[3]
    if grey:
        saturation = 0.0
    if not (jitter or grey):
        return view
    matrix = np.empty((3, 4), np.float32)
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    matrix[:, :3] = gain * (LUMA + cos * CHROMA + sin * QUARTER)
    matrix[:, 3] = offset
    changed: np.ndarray = cv2.transform(view, matrix)
    return changed
