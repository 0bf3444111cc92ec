"""Sampler, dataset and loader: every view is a function of (seed, epoch, row, sample, view)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data_adapters
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.data.dataset import EpochBatches, ViewDataset
from lejepa_med.data.loader import make_loader
from lejepa_med.errors import ConfigError, TrainingError
from tests.conftest import write_pictures


@pytest.fixture
def archive(pictures: Path) -> tuple[Manifest, data_adapters.Adapter]:
    adapter = data_adapters.create("images", n_global=2, n_local=2, global_size=32, local_size=16)
    return scan_archive(adapter, pictures).manifest, adapter


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    batches = list(EpochBatches([1, 3, 1, 2], batch_size=7, epochs=2, seed=0))
    wanted = {(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1)}
    assert all({key[1:] for key in batch} == wanted for batch in batches)
    assert [key[1:] for key in batches[0]] != [key[1:] for key in batches[1]]
    assert {key[0] for key in batches[1]} == {1}


@pytest.mark.parametrize("first", [0, 1, 4, 5, 9])
def test_a_later_start_continues_the_same_plan(first: int) -> None:
    plan = {"batch_size": 4, "epochs": 2, "seed": 3}
    whole = list(EpochBatches([1] * 22, **plan))
    rest = EpochBatches([1] * 22, first_step=first, **plan)
    assert list(rest) == whole[first:]
    assert len(rest) == len(whole) - first


def test_ranks_share_the_global_batch() -> None:
    plan = {"batch_size": 6, "epochs": 1, "seed": 1}
    whole = list(EpochBatches([1] * 20, **plan))
    parts = [list(EpochBatches([1] * 20, rank=rank, world_size=2, **plan)) for rank in (0, 1)]
    for batch, zero, one in zip(whole, *parts, strict=True):
        assert batch[0::2] == zero and batch[1::2] == one


def test_impossible_batches_name_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 5"):
        EpochBatches([1] * 5, batch_size=8, epochs=1, seed=0)
    with pytest.raises(ConfigError, match="multiple of 3"):
        EpochBatches([1] * 50, batch_size=8, epochs=1, seed=0, world_size=3)


def test_workers_give_equal_batches(archive: tuple[Manifest, data_adapters.Adapter]) -> None:
    manifest, adapter = archive

    def run(workers: int) -> list[torch.Tensor]:
        batches = EpochBatches([1] * len(manifest), batch_size=8, epochs=2, seed=5)
        loader = make_loader(ViewDataset(manifest, adapter, seed=5), batches, workers=workers)
        return [part for b in loader for part in (b.rows, b.global_views, b.local_views) if part is not None]

    alone, one, two = run(0), run(1), run(2)
    assert len(alone) == 36
    for a, b, c in zip(alone, one, two, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_views_change_with_seed_epoch_sample_and_view(archive: tuple[Manifest, data_adapters.Adapter]) -> None:
    manifest, adapter = archive
    dataset = ViewDataset(manifest, adapter, seed=0)
    base = dataset[(0, 3, 0)].views
    assert all(torch.equal(a, b) for a, b in zip(base, dataset[(0, 3, 0)].views, strict=True))
    others = [dataset[(1, 3, 0)], dataset[(0, 3, 1)], ViewDataset(manifest, adapter, seed=1)[(0, 3, 0)]]
    for other in others:
        assert not torch.equal(base[0], other.views[0])
    assert not torch.equal(base[0], base[1])
    assert [tuple(view.shape) for view in base] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 2


def test_a_file_that_breaks_later_is_replaced_and_reported(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    adapter = data_adapters.create("images", n_global=2, n_local=0, global_size=32)
    manifest = scan_archive(adapter, root).manifest
    victim = root / "0005.png"
    victim.write_bytes(victim.read_bytes()[:200])
    row = manifest.column("path").index("0005.png")
    dataset = ViewDataset(manifest, adapter, seed=0)
    first, again = dataset[(0, row, 0)], dataset[(0, row, 0)]
    assert first.row != row and first.bad[0].row == row and first.bad[0].reason
    assert first.row == again.row and torch.equal(first.views[0], again.views[0])
    batches = EpochBatches([1] * 12, batch_size=12, epochs=1, seed=0)
    bad = [read for batch in make_loader(dataset, batches, workers=2) for read in batch.bad]
    assert [read.row for read in bad] == [row]


def test_an_archive_that_vanished_ends_the_run(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=4)
    adapter = data_adapters.create("images", n_global=2, n_local=0, global_size=32)
    dataset = ViewDataset(scan_archive(adapter, root).manifest, adapter, seed=0)
    for file in root.glob("*.png"):
        file.unlink()
    with pytest.raises(TrainingError, match="still mounted"):
        dataset[(0, 0, 0)]


def test_a_programming_error_in_an_adapter_surfaces(archive: tuple[Manifest, data_adapters.Adapter]) -> None:
    manifest, adapter = archive
    dataset = ViewDataset(manifest, adapter, seed=0)
    adapter.read = lambda record, rng: {}["missing"]  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        dataset[(0, 0, 0)]


def test_sixteen_bit_files_need_a_policy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    found = scan_archive(data_adapters.create("images", channels=1), tmp_path)
    assert len(found.manifest) == 0 and "intensity" in found.refused[0].reason + found.refused[0].remedy
