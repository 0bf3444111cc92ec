"""Which patches the masked method hides: I-JEPA's blocks, or single patches."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lejepa_med.methods.masked import MIN_SIDE

Kind = Literal["multi_block", "random_token"]
# I-JEPA (arXiv 2301.08243), section 4: four target blocks and one context block, without the targets.
BLOCKS = 4
TARGET_SCALE, TARGET_ASPECT = (0.15, 0.2), (0.75, 1.5)
CONTEXT_SCALE = (0.85, 1.0)
LEAST_CONTEXT = 0.1  # share of the patches that every image keeps visible; where blocks leave less they are drawn again


class Masks(NamedTuple):
    """Patch indices, row by row through the grid; no patch is in both.

    Attributes:
        context: (views, batch, visible) int64, ascending.
        target: (views, batch, hidden) int64. Blocks may overlap, and then a patch is named twice, as in I-JEPA.
    """

    context: NDArray[np.int64]
    target: NDArray[np.int64]


def draw_masks(
    kind: Kind,
    *,
    grid: tuple[int, int],
    views: int,
    batch: int,
    ratio: float,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
) -> Masks:
    """Draw the masks of one step.

    They depend on (seed, step) and on the sample's place in the global batch, of which rank r holds the places r,
    r + world_size, ...; so any number of processes hides the same patches. All images of a step have equally many
    visible and equally many hidden patches, so that they stack; which of a larger context are dropped is drawn too
    (I-JEPA's code drops the last ones, at the lower edge).

    Args:
        kind: multi_block, or random_token.
        grid: patches down and across, at least 4 each.
        views: views of each sample; each has a mask of its own.
        batch: samples of this rank.
        ratio: share of the patches that random_token hides.
        seed: the run's seed.
        step: the optimiser step.
        rank: of this process.
        world_size: number of processes; all hold `batch` samples.

    Raises:
        ValueError: a grid below 4 x 4, or an unknown kind.
    """
    if min(grid) < MIN_SIDE:
        raise ValueError(f"Masks need at least {MIN_SIDE} x {MIN_SIDE} patches, got {grid[0]} x {grid[1]}.")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, 1)))  # 1: apart from SIGReg's directions
    images = views * batch * world_size
    if kind == "multi_block":
        context, target = _blocks(grid, images, rng)
    elif kind == "random_token":
        context, target = _tokens(grid, images, ratio, rng)
    else:
        raise ValueError(f"There is no mask {kind!r}; choose multi_block or random_token.")
    shape = (views, batch * world_size, -1)
    return Masks(context.reshape(shape)[:, rank::world_size], target.reshape(shape)[:, rank::world_size])


def _tokens(grid: tuple[int, int], images: int, ratio: float, rng: np.random.Generator) -> Masks:
    patches = grid[0] * grid[1]
    hidden = min(patches - 1, max(1, round(ratio * patches)))
    order = rng.random((images, patches)).argsort(axis=1)
    return Masks(np.sort(order[:, hidden:], axis=1), np.sort(order[:, :hidden], axis=1))


def _blocks(grid: tuple[int, int], images: int, rng: np.random.Generator) -> Masks:
    """One size of target and context block a step, as in I-JEPA; places are drawn for every image."""
    patches = grid[0] * grid[1]
    target_size = _size(grid, rng.uniform(*TARGET_SCALE), rng.uniform(*TARGET_ASPECT))
    context_size = _size(grid, rng.uniform(*CONTEXT_SCALE), 1.0)
    places = np.empty((images, BLOCKS, target_size[0] * target_size[1]), np.int64)
    visible = np.zeros((images, patches), bool)
    again = np.arange(images)
    while len(again):
        places[again] = _place(grid, target_size, len(again) * BLOCKS, rng).reshape(len(again), BLOCKS, -1)
        seen = np.zeros((len(again), patches), bool)
        np.put_along_axis(seen, _place(grid, context_size, len(again), rng), True, axis=1)
        np.put_along_axis(seen, places[again].reshape(len(again), -1), False, axis=1)
        visible[again] = seen
        again = again[seen.sum(axis=1) < LEAST_CONTEXT * patches]
    keep = int(visible.sum(axis=1).min())
    # visible patches first, in random order
    order = np.where(visible, rng.random(visible.shape), 2.0).argsort(axis=1)[:, :keep]
    return Masks(np.sort(order, axis=1), places.reshape(images, -1))


def _size(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    """Height and width in patches of a block with this share of the area; aspect is height / width."""
    area = scale * grid[0] * grid[1]
    height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    return min(max(1, height), grid[0]), min(max(1, width), grid[1])


def _place(grid: tuple[int, int], size: tuple[int, int], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count, height * width): indices of blocks at random places."""
    top, left = (rng.integers(0, whole - part + 1, (count, 1)) for whole, part in zip(grid, size, strict=True))
    inside = (np.arange(size[0])[:, None] * grid[1] + np.arange(size[1])).ravel()
    return top * grid[1] + left + inside
