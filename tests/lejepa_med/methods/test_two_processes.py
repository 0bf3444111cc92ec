"""Every method on two gloo processes, under DDP and FSDP2, equals one process on the joined batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lejepa_med.methods.base import AddedTerms, Method
from lejepa_med.models.batchnorm import convert_batchnorm
from lejepa_med.objective import SIGReg
from lejepa_med.training.sharding import shard
from tests.lejepa_med.methods.tiny_methods import NAMES, make_method, make_views

WORLD, STEPS = 2, 2
SHARDED = ("lejepa", "byol", "dino", "masked")


def build(name: str) -> Method:
    added = AddedTerms(SIGReg(8), sigreg_weight=0.1, hinge_weight=0.5) if name in ("byol", "spectral") else None
    return make_method(name, added=added)


def train(model: nn.Module, name: str, *, rank: int = 0, world: int = 1) -> dict[str, np.ndarray]:
    """Two steps of plain descent; everything that must agree."""
    method = model.module if isinstance(model, DistributedDataParallel) else model
    found: dict[str, np.ndarray] = {}
    for step in range(STEPS):
        whole, local = make_views(name, seed=step)
        # as the sampler deals: rank r takes the places r, r + world, ... of the batch
        out = model(whole[:, rank::world], None if local is None else local[:, rank::world], seed=0, step=step)
        out.loss.backward()
        found |= {f"{step}.{term}": value.numpy() for term, value in out.terms.items()}
        found[f"{step}.loss"] = out.loss.detach().numpy()
        with torch.no_grad():
            for key, p in method.named_parameters():
                if p.requires_grad:
                    assert p.grad is not None, key
                    found[f"{step}.grad.{key}"] = whole_of(p.grad)
                    p -= 0.05 * p.grad / (1 + float(np.linalg.norm(found[f"{step}.grad.{key}"])))
                    p.grad = None
        method.after_step(step=step, steps=STEPS)
    return found | {f"state.{key}": whole_of(value) for key, value in method.state_dict().items()}


def whole_of(tensor: Tensor) -> np.ndarray:
    """As one NumPy array, gathered where it is sharded."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().numpy().copy()


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=WORLD)
    for name in NAMES:
        # DDP stops at the second step where a weight had no part in the first
        model = DistributedDataParallel(convert_batchnorm(build(name)))
        np.savez(f"{folder}/{name}-{index}.npz", **train(model, name, rank=index, world=WORLD))
    mesh = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("data_parallel",))
    for name in SHARDED:
        method = convert_batchnorm(build(name))
        found = train(shard(method, mesh), name, rank=index, world=WORLD)
        np.savez(f"{folder}/{name}-fsdp-{index}.npz", **found)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("method-ranks")
    mp.spawn(worker, args=(str(path),), nprocs=WORLD)
    return path


@pytest.mark.timeout(900)  # two processes that import torch, on a busy machine
@pytest.mark.parametrize("kind", [*NAMES, *(f"{name}-fsdp" for name in SHARDED)])
def test_two_processes_equal_one(folder: Path, kind: str) -> None:
    """Losses, terms, gradients, running statistics, teachers and centres; float32 sums in another order."""
    name = kind.removesuffix("-fsdp")
    alone = train(build(name), name)
    for index in range(WORLD):
        got = np.load(folder / f"{kind}-{index}.npz")
        assert set(got) == set(alone)
        for key, expected in alone.items():
            # some gradients are 0 but for rounding, such as that of a last bias which only moves the batch
            atol = 5e-6 + 2e-4 * float(np.abs(expected).max())
            np.testing.assert_allclose(got[key], expected, rtol=2e-4, atol=atol, err_msg=key)
