"""The sums of `ecf_sums` and their gradient as two Triton kernels.

Each reads the projections once, and nothing of their size is written but the gradient. A program takes a tile of rows
and directions. Forward: one sine and cosine, then powers by multiplication, each summed over the tile's rows; PyTorch
adds the tiles' sums afterwards, so the result does not depend on which program ends first. Backward: Horner's rule on
the same numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 128, 32  # of a tile; 4096 values with four registers each fit 256 threads


@triton.jit
def _forward(x, sums, rows, columns, spacing, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore # noqa
    view, tile, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tile * ROWS + tl.arange(0, ROWS)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    place = (view.to(tl.int64) * rows + row[:, None]) * columns + column[None, :]
    angle = tl.load(x + place, mask=inside, other=0.0) * spacing
    cos1, sin1 = tl.cos(angle), tl.sin(angle)
    # rows outside add nothing: their powers stay 0
    cos, sin = tl.where(inside, cos1, 0.0), tl.where(inside, sin1, 0.0)
    out = ((tile * tl.num_programs(0) + view).to(tl.int64) * count * columns + column) * 2
    for knot in range(count):
        here = out + knot * columns * 2
        tl.store(sums + here, tl.sum(cos, axis=0), mask=column < columns)
        tl.store(sums + here + 1, tl.sum(sin, axis=0), mask=column < columns)
        cos, sin = cos * cos1 - sin * sin1, cos * sin1 + sin * cos1


@triton.jit
def _backward(x, grad, out, rows, columns, spacing, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore # noqa
    view, tile, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tile * ROWS + tl.arange(0, ROWS)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    place = (view.to(tl.int64) * rows + row[:, None]) * columns + column[None, :]
    angle = tl.load(x + place, mask=inside, other=0.0) * spacing
    cos1, sin1 = tl.cos(angle), tl.sin(angle)
    real, imaginary = tl.zeros_like(angle), tl.zeros_like(angle)
    for done in range(count):
        knot = count - 1 - done
        here = ((view.to(tl.int64) * count + knot) * columns + column) * 2
        t = spacing * (knot + 1)
        of_cos = t * tl.load(grad + here, mask=column < columns, other=0.0)
        of_sin = t * tl.load(grad + here + 1, mask=column < columns, other=0.0)
        real, imaginary = real + of_sin[None, :], imaginary + of_cos[None, :]
        real, imaginary = real * cos1 - imaginary * sin1, real * sin1 + imaginary * cos1
    tl.store(out + place, real, mask=inside)


def forward(x: Tensor, spacing: float, count: int) -> Tensor:
    """(views, rows, columns) float32 or float64 on the device -> (views, count, columns, 2)."""
    x = x.contiguous()
    views, rows, columns = x.shape
    tiles = triton.cdiv(rows, ROWS)
    sums = x.new_empty(tiles, views, count, columns, 2)
    grid = (views, tiles, triton.cdiv(columns, COLUMNS))
    _forward[grid](x, sums, rows, columns, spacing, count, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=8)
    return sums.sum(0)


def backward(x: Tensor, grad: Tensor, spacing: float) -> Tensor:
    """`grad`: (views, count, columns, 2), of the sums -> gradient of `x`, (views, rows, columns)."""
    x, grad = x.contiguous(), grad.contiguous()
    views, rows, columns = x.shape
    out = torch.empty_like(x)
    grid = (views, triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))
    _backward[grid](x, grad, out, rows, columns, spacing, grad.shape[1], ROWS=ROWS, COLUMNS=COLUMNS, num_warps=8)
    return out
