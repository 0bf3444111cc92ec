"""Every method on two gloo processes under DDP equals one process on the joined batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lejepa_med.methods import Method
from lejepa_med.methods.added import AddedTerms
from lejepa_med.models.batchnorm import convert_batchnorm
from lejepa_med.objective import SIGReg
from tests.lejepa_med.tiny_methods import NAMES, make_method, make_views

WORLD, STEPS = 2, 2


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
                    found[f"{step}.grad.{key}"] = p.grad.numpy().copy()
                    p -= 0.05 * p.grad / (1 + p.grad.norm())
                    p.grad = None
        method.after_step(step=step, steps=STEPS)
    return found | {f"state.{key}": value.numpy() for key, value in method.state_dict().items()}


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=WORLD)
    for name in NAMES:
        # DDP stops at the second step where a weight had no part in the first
        model = DistributedDataParallel(convert_batchnorm(build(name)))
        np.savez(f"{folder}/{name}-{index}.npz", **train(model, name, rank=index, world=WORLD))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("method-ranks")
    mp.spawn(worker, args=(str(path),), nprocs=WORLD)
    return path


@pytest.mark.timeout(900)  # two processes that import torch, on a busy machine
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(folder: Path, name: str) -> None:
    """Losses, terms, gradients, running statistics, teachers and centres; float32 sums in another order."""
    alone = train(build(name), name)
    for index in range(WORLD):
        got = np.load(folder / f"{name}-{index}.npz")
        assert set(got) == set(alone)
        for key, expected in alone.items():
            # some gradients are 0 but for rounding, such as that of a last bias which only moves the batch
            atol = 5e-6 + 2e-4 * float(np.abs(expected).max())
            np.testing.assert_allclose(got[key], expected, rtol=2e-4, atol=atol, err_msg=key)
