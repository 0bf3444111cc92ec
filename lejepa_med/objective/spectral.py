"""Spectral entropy: not LeJEPA, but the regulariser that a third-party article calls SIGReg. Kept for comparison."""

import math
import warnings

import torch
from torch import Tensor, nn

from lejepa_med.distributed import all_reduce_sum, world_size
from lejepa_med.objective.moments import centred, deviations, scale_penalty

_EPS = 1e-6  # added to eigenvalues, since the square root has no slope at 0; embeddings have a scale of about 1


class SpectralEntropy(nn.Module):
    """Kullback-Leibler divergence of the normalised singular values to the uniform distribution, plus a scale term.

        p = singular values of the centred batch (N, D), divided by their sum
        log D + sum of p log p  +  mean over dimensions of (1 - std)^2

    The first part alone is blind to scale (z and z / 1000 give the same value), so that a collapse in magnitude would
    be free; the second part, VISReg's scale term, closes that. The singular values come from the covariance (D, D),
    summed over ranks. A batch of N <= D samples has a rank of N - 1 at most, and the value cannot fall below
    log(D / (N - 1)): a warning says so once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._warned = False

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average over views. There is no randomness: `seed` and `step` are part of the regularisers' common form.

        Args:
            z: (views, batch, dim), this rank's share; float64 is computed in float64, all else in float32.
            seed: not used.
            step: not used.

        Returns:
            A scalar, equal on all ranks.

        Raises:
            ValueError: z is not three-dimensional or is empty.
        """
        if z.ndim != 3 or z.numel() == 0:
            raise ValueError(f"SpectralEntropy expects a non-empty (views, batch, dim), got {tuple(z.shape)}.")
        self._warn(batch=z.shape[1] * world_size(), dim=z.shape[2])
        z = z if z.dtype == torch.float64 else z.float()
        with torch.autocast(z.device.type, enabled=False):
            rest, _, n = centred(z)
            covariance = all_reduce_sum(rest.mT @ rest) / n
            values = (torch.linalg.eigvalsh(covariance).clamp_min(0) + _EPS).sqrt()
            p = values / values.sum(-1, keepdim=True)
            divergence = math.log(z.shape[2]) + (p * p.log()).sum(-1)
            total: Tensor = divergence.mean() + scale_penalty(deviations(rest, n))
            return total

    def _warn(self, *, batch: int, dim: int) -> None:
        if batch <= dim and not self._warned:
            self._warned = True
            warnings.warn(
                f"A batch of {batch} samples cannot fill {dim} dimensions: the spectral entropy stays above "
                f"{math.log(dim / max(1, batch - 1)):.2f}. Take a batch larger than --model.projector-dim.",
                stacklevel=3,
            )
