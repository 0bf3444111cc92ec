"""Batch normalisation over the joined batch of all ranks, on GPUs and on CPUs."""

from itertools import chain

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lejepa_med.distributed import all_reduce_sum, world_size


class SyncBatchNorm(_BatchNorm):
    """Synchronised batch normalisation from plain operations, for any device and backend.

    `torch.nn.SyncBatchNorm` has no CPU form, and DDP refuses it (and its subclasses) in a CPU model. Outputs, gradients
    and running statistics here are those of one process on the joined batch, whatever the ranks' shares. Parameter
    names are those of `nn.BatchNorm2d`, so weights are exchanged with unconverted models.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (batch, channels, ...) with the mean and variance over all ranks.

        Raises:
            ValueError: all ranks together bring a single value per channel, which has no variance.
        """
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [0, *range(2, input.ndim)]
        x = input if input.dtype == torch.float64 else input.float()
        count_and_sum = all_reduce_sum(torch.cat([x.new_full((1,), x.numel() / x.shape[1]), x.sum(axes)]))
        count = float(count_and_sum[0].detach())
        if count < 2:
            raise ValueError(f"Batch normalisation needs more than one value per channel, got {tuple(input.shape)}.")
        mean = count_and_sum[1:] / count
        shape = [1, -1] + [1] * (input.ndim - 2)
        centred = x - mean.view(shape)
        # A second pass for the variance: sum(x^2) - sum(x)^2 / n loses its digits where the mean is large.
        var = all_reduce_sum(centred.square().sum(axes)) / count
        self._update(mean.detach(), var.detach() * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # built with track_running_stats=False
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"Expected (batch, {self.num_features}, ...), got {tuple(input.shape)}.")


class SyncBatchNormAct2d(SyncBatchNorm):
    """The synchronised form of timm's `BatchNormAct2d`: normalisation, drop and activation in one module."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, drop and activate (batch, channels, height, width)."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def convert_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation in `module` by a synchronised one, keeping parameters and statistics.

    On a GPU that is torch's fused `nn.SyncBatchNorm` (in timm's form where an activation belongs to it), elsewhere
    `SyncBatchNorm` above, which would be right on a GPU too but slower: so move the module to its device first.
    Parameters and buffers are handed over, not copied, so an optimiser that holds them stays valid. Call it before
    wrapping the model for data-parallel training; in a single process the result behaves as before.

    Returns:
        `module`, changed in place; or its replacement where `module` itself is a batch normalisation.

    Raises:
        TypeError: a batch normalisation of another kind, whose extra behaviour would be lost.
    """
    if isinstance(module, _BatchNorm):
        return _synchronised(module)
    for name, child in module.named_children():
        converted = convert_batchnorm(child)
        if converted is not child:
            setattr(module, name, converted)
    return module


def _synchronised(module: _BatchNorm) -> nn.Module:
    if isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
        return module
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d):
        raise TypeError(
            f"Cannot synchronise {type(module).__name__} over ranks without losing what it adds to batch "
            "normalisation; train on one process, or use a backbone with nn.BatchNorm2d, GroupNorm or LayerNorm."
        )
    if any(tensor.is_cuda for tensor in chain(module.parameters(), module.buffers())):
        fused: nn.Module = convert_sync_batchnorm(module)
        return fused
    kind = SyncBatchNormAct2d if isinstance(module, BatchNormAct2d) else SyncBatchNorm
    settings = (module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    new = kind(*settings, device="meta")
    new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    if isinstance(module, BatchNormAct2d) and isinstance(new, SyncBatchNormAct2d):
        new.drop, new.act = module.drop, module.act
    return new.train(module.training)
