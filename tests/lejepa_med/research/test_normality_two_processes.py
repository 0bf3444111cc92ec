"""Two gloo processes with unequal shares must be one process on the joined batch: value and gradient, in float64."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lejepa_med.distributed import all_gather_rows
from lejepa_med.objective.normality import known_tests, make_test

WORLD = 2
SHARES = (2, 5)
SLICES = (1, 5)  # with one, the second rank has no direction to test


def batch() -> Tensor:
    """(views, joined batch, dim); ranks hold unlike samples."""
    z = torch.randn(3, sum(SHARES), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return z + torch.arange(sum(SHARES)).view(-1, 1) / 5


def evaluate(z: Tensor) -> dict[str, np.ndarray]:
    """Value and gradient of every test; collapsed samples, too, for equal values must keep their order over ranks."""
    found = {}
    for case, points in (("spread", z), ("collapsed", torch.full_like(z, 0.5))):
        for name in known_tests():
            for slices in SLICES:
                own = points.clone().requires_grad_()
                value = make_test(name, slices=slices)(own, seed=0, step=3)
                found[f"{case}/{name}/{slices}/value"] = value.detach().numpy()
                found[f"{case}/{name}/{slices}/grad"] = torch.autograd.grad(value, own)[0].numpy()
    return found


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=WORLD)
    start = sum(SHARES[:index])
    found = evaluate(batch()[:, start : start + SHARES[index]])
    rows = torch.full((1 + index, 2), float(index), requires_grad=True)
    joined = all_gather_rows(rows, dim=0)
    (joined * torch.arange(6.0).view(3, 2) * (index + 1)).sum().backward()
    assert rows.grad is not None
    found |= {"gather/rows": joined.detach().numpy(), "gather/grad": rows.grad.numpy()}
    np.savez(f"{folder}/{index}.npz", **found)
    dist.barrier()  # a rank that leaves early takes the store with it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("ranks")
    assert os.environ["OMP_NUM_THREADS"] == "1"
    mp.spawn(worker, args=(str(folder),), nprocs=WORLD)
    return [dict(np.load(Path(folder) / f"{index}.npz")) for index in range(WORLD)]


def test_two_processes_equal_one(ranks: list[dict[str, np.ndarray]]) -> None:
    expected = evaluate(batch())
    assert len(expected) == 4 * len(known_tests()) * len(SLICES)
    for name, one in expected.items():
        two = [rank[name] for rank in ranks]
        # DDP takes the mean of the ranks' gradients; a sample's gradient is on its own rank only.
        got = np.concatenate(two, axis=1) / WORLD if name.endswith("grad") else two[0]
        np.testing.assert_allclose(got, one, rtol=1e-10, atol=1e-12, err_msg=name)
        if name.endswith("value"):
            assert two[0] == two[1], name


def test_gathered_rows_come_in_rank_order_with_the_sum_of_the_gradients(ranks: list[dict[str, np.ndarray]]) -> None:
    weights = np.arange(6.0).reshape(3, 2) * (1 + 2)
    for index, rank in enumerate(ranks):
        np.testing.assert_array_equal(rank["gather/rows"], [[0, 0], [1, 1], [1, 1]])
        np.testing.assert_array_equal(rank["gather/grad"], weights[:1] if index == 0 else weights[1:])
