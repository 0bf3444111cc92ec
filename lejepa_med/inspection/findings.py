"""What is wrong with prepared pixels or views, in numbers and in words.

A warning is "kind: what was measured; what to do": the kind has no numbers, so that equal ones can be counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from data_adapters.base import Spec
from lejepa_med.inspection.display import planes

BLACK, WHITE = 0.5 / 255, 254.5 / 255  # what rounds to 0 or 255
TAILS = (0.5, 99.5)  # percentiles between which the values in use lie
MOSTLY_BLACK = 0.9
CUT_OFF = 0.05  # of the pixels at an end of the range
NARROW = 0.1  # of the range [0, 1]
EMPTY = 0.15  # of the prepared image's own range: a view below shows background only
ALIKE = 0.99  # correlation of two views
ROUNDING = 1e-5  # of float32 arithmetic at the ends of [0, 1]
ENLARGED = 2.0  # prepared pixels per stored pixel
GRID = 24  # views are compared at this size, which shape fills and noise does not


@dataclass(frozen=True)
class Values:
    """The values of one image in units of [0, 1]: what lies between the tails, and shares at both ends."""

    low: float
    high: float
    black: float
    saturated: float

    @classmethod
    def of(cls, images: Sequence[NDArray[np.float32]]) -> "Values":
        """Over all channels and items; NaN counts as neither."""
        flat = np.concatenate([image.ravel() for image in images])
        finite = flat[np.isfinite(flat)]
        low, high = np.percentile(finite, TAILS) if finite.size else (0.0, 0.0)
        return cls(float(low), float(high), float((flat <= BLACK).mean()), float((flat >= WHITE).mean()))


def contract(prepared: Tensor, views: Sequence[Tensor], spec: Spec) -> list[str]:
    """How `prepare` and `views` break what Spec promises; of use to who writes an adapter."""
    said = []
    if prepared.ndim < 4 or prepared.shape[1] != spec.channels or set(prepared.shape[2:]) != {spec.embed_size}:
        side = spec.embed_size
        said.append(
            f"broken contract: prepare gives {tuple(prepared.shape)}, not (n, {spec.channels}, {side}, {side})."
        )
    if len(views) != spec.n_views:
        said.append(f"broken contract: {len(views)} views, where {spec.n_views} are promised.")
    for name, tensors in (("prepare", [prepared]), ("a view", views)):
        if any(not bool(t.isfinite().all()) for t in tensors):
            said.append(f"broken contract: NaN or infinite values in {name}.")
        elif any(t.is_floating_point() and float((t - 0.5).abs().max()) > 0.5 + ROUNDING for t in tensors):
            said.append(f"broken contract: values outside [0, 1] in {name}.")
    return said


def of_prepared(values: Values, *, raw: Values | None, size: Sequence[float], side: int) -> list[str]:
    """Warnings about the prepared image.

    Args:
        values: of the prepared image.
        raw: of the file as a plain viewer shows it, or None.
        size: stored pixels (or voxels) of the record; empty if unknown.
        side: of the prepared image, pixels.
    """
    said = []
    if values.high - values.low < 1e-6:
        return ["one value only: nothing of the file is left in the prepared image."]
    if values.black > MOSTLY_BLACK:
        said.append(f"almost all black: {values.black:.0%} of pixels are black; check the window, or crop the object.")
    if values.high - values.low < NARROW:
        said.append(
            f"low contrast: values use only {values.low:.2f} to {values.high:.2f} of 0 to 1; the window is too wide."
        )
    cut = values.saturated - (raw.saturated if raw else 0.0)
    if cut > CUT_OFF:
        of_file = f", in the file {raw.saturated:.0%}" if raw else ""
        said.append(f"saturated: {values.saturated:.0%} of pixels are at the top{of_file}; the window ends too low.")
    if size and side > ENLARGED * max(size[:2]):
        said.append(
            f"enlarged: {max(size[:2]):.0f} stored pixels become {side}; a global_size near the stored size costs less "
            "and shows the same."
        )
    return said


def empty_views(prepared: Values, views: Sequence[Values]) -> list[int]:
    """Indices of the views that show background only: their values span little of what the prepared image spans."""
    span = prepared.high - prepared.low
    return [k for k, view in enumerate(views) if view.high - view.low < EMPTY * span]


def of_views(views: Sequence[Tensor], empty: Sequence[int], n_global: int) -> list[str]:
    """Warnings about the views of one record."""
    said = []
    if len(empty) * 2 > len(views):
        said.append(f"views miss the foreground: {len(empty)} of {len(views)} show background only; enlarge the crops.")
    shown = [view for k, view in enumerate(views) if k not in empty]
    least = min(
        (_alike(a, b) for k, a in enumerate(shown) for b in shown[k + 1 :]),
        default=0.0,
    )
    if len(shown) > 1 and least > ALIKE:
        said.append(
            f"all views almost equal: any two correlate by {least:.3f} or more, so the encoder learns nothing from "
            "them; smaller crops or a stronger recipe make them differ."
        )
    if n_global and set(range(n_global)) <= set(empty):
        said.append("no global view shows the foreground: the target of every local view is background.")
    return said


def _alike(one: Tensor, other: Tensor) -> float:
    """Correlation of two views, each averaged to a small grid; of equal constant views, 1."""
    a, b = (adaptive_avg_pool2d(torch.from_numpy(planes(view)), GRID).double() for view in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float((a * b).sum()) / norm if norm > 0 else 1.0
