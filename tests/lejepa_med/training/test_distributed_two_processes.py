"""Two gloo processes must be one process on the joined batch: loss, gradients, running statistics, in float64."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lejepa_med.distributed import all_reduce_sum, rank, world_size
from lejepa_med.methods.base import Projector
from lejepa_med.models.batchnorm import SyncBatchNorm, SyncBatchNormAct2d, convert_batchnorm
from lejepa_med.objective import LeJEPA, LeJEPALoss, SIGReg

WORLD = 2
N_GLOBAL, N_LOCAL, BATCH, DIM = 2, 3, 6, 4


class Net(nn.Module):
    """A small encoder with both kinds of batch normalisation, and the projector."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, momentum=None), nn.Conv2d(5, 8, 3), BatchNormAct2d(8)
        )
        self.projector = Projector(8, hidden=16, out_dim=DIM)

    def forward(self, global_x: Tensor, local_x: Tensor) -> tuple[Tensor, Tensor]:
        """(views, batch, 3, size, size) each -> (views, batch, DIM) each; one projector call for all views."""
        pooled = [self.encoder(x.flatten(0, 1)).mean((2, 3)) for x in (global_x, local_x)]
        z = self.projector(torch.cat(pooled)).unflatten(0, (N_GLOBAL + N_LOCAL, -1))
        return z[:N_GLOBAL], z[N_GLOBAL:]


def make_net() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    with torch.no_grad():  # affine parameters away from 1 and 0, where mistakes hide
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype) / 5)
    return net


def make_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    global_x = torch.randn(N_GLOBAL, BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    local_x = torch.randn(N_LOCAL, BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
    return global_x + torch.arange(BATCH).view(-1, 1, 1, 1), local_x  # ranks hold unlike samples


def objective() -> LeJEPA:
    return LeJEPA(0.3, SIGReg(slices=32))


def backward(net: nn.Module, global_x: Tensor, local_x: Tensor) -> LeJEPALoss:
    result: LeJEPALoss = objective()(*net(global_x, local_x), seed=0, step=7)
    result.loss.backward()
    return result


def arrays(net: nn.Module, result: LeJEPALoss) -> dict[str, np.ndarray]:
    """Everything that must agree, as NumPy arrays."""
    values = {f"loss.{name}": value.detach() for name, value in result._asdict().items()}
    values |= {f"grad.{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    values |= {f"buffer.{name}": buffer for name, buffer in net.named_buffers()}
    return {name: value.numpy() for name, value in values.items()}


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=WORLD)
    assert (rank(), world_size()) == (index, WORLD)
    global_x, local_x = make_batch()

    # Shares of 2 and 4 samples: the mean over ranks stays exact, because the loss itself is that of the joined batch.
    for name, shares in (("equal", (3, 3)), ("unequal", (2, 4))):
        start = sum(shares[:index])
        own = slice(start, start + shares[index])
        net = convert_batchnorm(make_net())
        result = backward(net, global_x[:, own], local_x[:, own])
        for p in net.parameters():
            dist.all_reduce(p.grad)
            p.grad /= WORLD
        np.savez(f"{folder}/{name}-{index}.npz", **arrays(net, result))

    own = slice(3 * index, 3 * index + 3)
    ddp = DistributedDataParallel(convert_batchnorm(make_net()))
    result = backward(ddp, global_x[:, own], local_x[:, own])
    np.savez(f"{folder}/ddp-{index}.npz", **arrays(ddp.module, result))

    x = torch.tensor([1.0, 2.0]) * (index + 1)
    x.requires_grad_()
    total = all_reduce_sum(x)
    (total * (index + 1)).sum().backward()
    np.savez(f"{folder}/sum-{index}.npz", x=x.detach().numpy(), total=total.detach().numpy(), grad=x.grad.numpy())

    layer = convert_batchnorm(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="more than one value"):
        # One value per channel in all: rank 0 brings a row, rank 1 none.
        layer(torch.ones(1 - index, 2))
    dist.barrier()  # a rank that leaves early takes the store with it
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.spawn(worker, args=(str(path),), nprocs=WORLD)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return path


@pytest.fixture(scope="module")
def single() -> dict[str, np.ndarray]:
    """One process on the joined batch, with torch's and timm's own batch normalisation."""
    net = make_net()
    return arrays(net, backward(net, *make_batch()))


@pytest.mark.parametrize("index", range(WORLD))
@pytest.mark.parametrize("kind", ["equal", "unequal", "ddp"])
def test_two_processes_equal_one(folder: Path, single: dict[str, np.ndarray], kind: str, index: int) -> None:
    got = np.load(folder / f"{kind}-{index}.npz")
    assert set(got) == set(single)
    assert sum(name.startswith("grad.") for name in got) == len(list(make_net().parameters()))
    assert sum("running" in name for name in got) == 8
    for name, expected in single.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-9, atol=1e-11, err_msg=name)


def test_all_reduce_sum_adds_values_and_gradients_out_of_place(folder: Path) -> None:
    for index in range(WORLD):
        got = np.load(folder / f"sum-{index}.npz")
        np.testing.assert_array_equal(got["x"], np.array([1, 2]) * (index + 1))
        np.testing.assert_array_equal(got["total"], [3, 6])
        np.testing.assert_array_equal(got["grad"], [3, 3])


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2)
    assert (rank(), world_size()) == (0, 1)
    assert all_reduce_sum(x) is x


def test_conversion_in_one_process_changes_nothing() -> None:
    plain, converted = make_net(), convert_batchnorm(make_net())
    assert plain.state_dict().keys() == converted.state_dict().keys()
    results = [arrays(net, backward(net, *make_batch())) for net in (plain, converted)]
    for name, expected in results[0].items():
        np.testing.assert_array_equal(results[1][name], expected, err_msg=name)
    for net in (plain, converted):
        net.eval()
    for expected, got in zip(plain(*make_batch()), converted(*make_batch()), strict=True):
        assert torch.equal(got, expected)


def test_conversion_hands_over_parameters_activation_and_mode() -> None:
    net = make_net()
    old = net.encoder[3]
    net.encoder[1].eval()
    parameters = [id(p) for p in net.parameters()]
    converted = convert_batchnorm(net)
    assert converted is net
    assert [id(p) for p in net.parameters()] == parameters
    assert isinstance(net.encoder[3], SyncBatchNormAct2d)
    assert net.encoder[3].act is old.act
    assert not net.encoder[1].training
    assert net.encoder[3].training
    kinds = [type(m) for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert kinds == [SyncBatchNorm, SyncBatchNormAct2d, SyncBatchNorm, SyncBatchNorm]
    before = list(net.modules())
    assert all(a is b for a, b in zip(before, convert_batchnorm(net).modules(), strict=True))


def test_unknown_batch_normalisation_is_refused() -> None:
    class Special(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match="Special"):
        convert_batchnorm(nn.Sequential(Special(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_conversion_on_a_gpu_takes_the_fused_layers() -> None:
    net = convert_batchnorm(make_net().cuda())
    kinds = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(kinds) == 4
    assert all(isinstance(m, nn.SyncBatchNorm) for m in kinds)
