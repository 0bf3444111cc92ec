"""FSDP2: the model's parameters and the optimiser's moments are shared out over the processes."""

from typing import Any

import torch
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

SMALLEST = 2**18  # parameters of a part that is gathered by itself; smaller ones come with what surrounds them


def fsdp_strategy(world_size: int) -> ModelParallelStrategy:
    """Fabric's strategy that shards over all processes."""
    return ModelParallelStrategy(shard, data_parallel_size=world_size, tensor_parallel_size=1)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard in place: every large element of a sequence (a transformer block, a residual stage), then the rest."""
    processes = mesh["data_parallel"]
    module.to(memory_format=torch.contiguous_format)  # FSDP2 refuses channels_last parameters
    sequences = [part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    for sequence in reversed(sequences):  # the inner ones first: the outer ones get what is left
        for part in sequence:
            if not isinstance(part, FSDPModule) and sum(p.numel() for p in part.parameters()) >= SMALLEST:
                fully_shard(part, mesh=processes)
    fully_shard(module, mesh=processes)
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(module, FSDPModule)


def gather(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Whole weights and optimiser state on rank 0, in the form that unsharded ones have; called by all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(module, options=options)
    state: dict[str, Any] = get_optimizer_state_dict(module, optimizer, options=options)
    places = _places(module, optimizer)
    plain = optimizer.state_dict()
    return weights, {
        "state": {places[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": plain["param_groups"],
    }


def scatter(
    module: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Any], state: dict[str, Any]
) -> None:
    """The reverse of `gather`; every rank gives the whole state."""
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))
    if not state["state"]:  # of a finished run
        return
    names = {place: name for name, place in _places(module, optimizer).items()}
    whole: dict[str, Any] = {
        "state": {names[place]: values for place, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[place] for place in group["params"]]} for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(module, optimizer, whole, options=StateDictOptions(full_state_dict=True))


def whole(value: Tensor) -> Tensor:
    """Return the whole tensor of a sharded one, and any other as it is; called by all ranks."""
    return value.full_tensor() if isinstance(value, DTensor) else value  # type: ignore[no-any-return]


def _places(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Parameter name -> its place in the optimiser's own state_dict."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[id(parameter)]: place for place, parameter in enumerate(flat)}
