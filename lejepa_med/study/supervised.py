"""What needs no pretraining at all: a small convolutional network trained on the labels alone, from random weights.

Four blocks of convolution, batch norm, ReLU and pooling, as in the papers on small medical sets where such a network is
hard to beat. It sees the modality's own views while it learns, and is asked about the prepared image in the same fixed
views as every other row.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data_adapters.base import Adapter, Spec
from data_adapters.manifest import Manifest
from lejepa_med.data.dataset import Key, ViewDataset
from lejepa_med.data.loader import make_loader
from lejepa_med.models.encoder import Normalize
from lejepa_med.models.formation import Formation, fixed_views

WIDTHS = (32, 64, 128, 256)
STEPS = 1000
SOURCES = 16  # of a step; each gives all its global views
RATE, DECAY, DROPOUT = 1e-3, 1e-2, 0.3
PART = 64  # images in one forward pass


def network(spec: Spec, classes: int) -> nn.Module:
    """(B, C, H, W) or (B, C, D, H, W) of stored pixels -> (B, classes) logits."""
    kinds: Any = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
        if spec.dims == 2
        else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d)
    )
    conv, norm, pool, mean = kinds
    blocks = [
        nn.Sequential(conv(before, width, 3, padding=1, bias=False), norm(width), nn.ReLU(), pool(2))
        for before, width in pairwise((spec.channels, *WIDTHS))
    ]
    head = (mean(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1], classes))
    return nn.Sequential(Normalize(spec.mean, spec.std, dims=spec.dims), *blocks, *head)


def train(
    adapter: Adapter,
    learn: Manifest,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    *,
    seed: int,
    steps: int = STEPS,
    workers: int = 0,
    device: str = "cpu",
    step_done: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A network that has learnt the classes `codes[rows]` of these rows of `learn`; each class is drawn as often.

    AdamW, one cycle of the learning rate. `step_done` is called after each step.
    """
    spec, classes = adapter.spec, int(codes.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(spec, classes).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        members = [rows[codes[rows] == k] for k in range(classes)]
        dataset = ViewDataset(learn, adapter, seed=seed)
        loader = make_loader(dataset, _keys(members, learn.column("samples"), steps, seed), workers=workers)
        for batch in loader:
            views = batch.global_views.flatten(0, 1).to(device)  # view by view
            wanted = torch.from_numpy(codes)[batch.rows].repeat(len(batch.global_views)).to(device)
            loss = cross_entropy(model(views), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step_done()
    return model.eval()


def _keys(members: Sequence[NDArray[np.int64]], samples: Sequence[int], steps: int, seed: int) -> Iterator[list[Key]]:
    """Of each step the sources: classes alike, images of a class alike."""
    for step in range(steps):
        rng = np.random.default_rng((seed, step, 1))
        chosen = [int(rng.choice(members[k % len(members)])) for k in rng.permutation(SOURCES)]
        yield [(step, row, int(rng.integers(samples[row]))) for row in chosen]


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module], prepared: Iterable[Tensor], formation: Formation, *, device: str = "cpu"
) -> NDArray[np.int64]:
    """The class of each item by each model, (models, items): of its (n, C, H, W) parts the mean probability."""
    found = []
    for pixels in prepared:
        views = fixed_views(pixels, formation.views).split(PART)
        found.append(
            [int(torch.cat([model(part.to(device)).softmax(1) for part in views]).mean(0).argmax()) for model in models]
        )
    return np.array(found, dtype=np.int64).T
