"""Networks that learn from the labels: a small one from random weights, and an encoder that is fine-tuned.

The small one needs no pretraining at all: four blocks of convolution, batch norm, ReLU and pooling, as in the papers on
small medical sets where such a network is hard to beat. Both see the modality's own views while they learn, and are
asked about the prepared image in the same fixed views as every other row.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_adapters.base import Adapter, Spec
from data_adapters.manifest import Manifest
from lejepa_med.config import OptimConfig
from lejepa_med.data.dataset import Key, ViewDataset
from lejepa_med.data.loader import make_loader
from lejepa_med.errors import ConfigError
from lejepa_med.models.encoder import Encoder, Normalize
from lejepa_med.models.formation import Formation, fixed_views
from lejepa_med.models.start import freeze, layers_of
from lejepa_med.probes.target import Answers, Target, as_matrix, scaled_back
from lejepa_med.training.optimizer import learning_rate, make_optimizer

WIDTHS = (32, 64, 128, 256)
STEPS = 1000
SOURCES = 16  # of a step; each gives all its global views
DROPOUT = 0.3
PART = 64  # images in one forward pass
SMALL = OptimConfig(lr=1e-3, weight_decay=1e-2, warmup=0.1)
# Our choice, from the usual recipes of fine-tuning (BEiT, arXiv 2106.08254; MAE, arXiv 2111.06377, table 9).
TUNING = OptimConfig(lr=5e-4, weight_decay=0.05, warmup=0.1, layer_decay=0.75)
SMOOTHING, MIXUP = 0.1, 0.2
Depth = Literal["last", "full"]


def network(spec: Spec, heads: int) -> nn.Module:
    """(B, C, H, W) or (B, C, D, H, W) of stored pixels -> (B, heads)."""
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
    head = (mean(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(WIDTHS[-1], heads))
    return nn.Sequential(Normalize(spec.mean, spec.std, dims=spec.dims), *blocks, *head)


class Tuned(nn.Module):
    """An encoder under a new linear head, of which all or the last blocks are trained."""

    def __init__(self, encoder: Encoder, heads: int, *, depth: Depth, blocks: int) -> None:
        """Take the encoder (not a copy) and freeze what is not trained.

        Args:
            encoder: plain pixels in, (B, dim) out.
            heads: outputs.
            depth: "full", or "last" for the last `blocks` of a ViT, stages of a CNN.
            blocks: see there.

        Raises:
            ConfigError: "last" of a backbone that does not say what its layers are, or has fewer.
        """
        super().__init__()
        self.encoder = encoder
        if depth == "last":
            place = layers_of(encoder.backbone)
            if place is None:
                raise ConfigError(
                    f"{encoder.name} does not say what its layers are, so its last ones cannot be trained alone.",
                    remedy="Give --fine-tune full.",
                )
            freeze(encoder, max(0, max(place.values()) + 1 - blocks))
        self.head = nn.Linear(encoder.dim, heads)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W) of stored pixels -> (B, heads)."""
        return self.head(self.encoder(pixels))  # type: ignore[no-any-return]


def tuning(encoder: Encoder) -> OptimConfig:
    """How an encoder is fine-tuned; one rate for all layers where it does not say what they are."""
    return TUNING if layers_of(encoder.backbone) else TUNING.model_copy(update={"layer_decay": 1.0})


def train(
    model: nn.Module,
    optim: OptimConfig,
    target: Target,
    adapter: Adapter,
    learn: Manifest,
    rows: NDArray[np.int64],
    *,
    seed: int,
    steps: int = STEPS,
    seconds: float = float("inf"),
    smoothing: float = 0.0,
    mixup: float = 0.0,
    workers: int = 0,
    device: str = "cpu",
    step_done: Callable[[float], None] = lambda share: None,
) -> nn.Module:
    """Teach the model the labels of these rows of `learn`; each class is drawn as often.

    AdamW, linear warm-up and cosine over `steps` or `seconds`, whichever ends first. Label smoothing (arXiv 1512.00567)
    spreads a part of the wanted class over all; mixup (arXiv 1710.09412) mixes each image and its label with those of
    another, by a share from Beta(mixup, mixup). `step_done` is told the share of the training that is done.
    """
    heads = target.matrix.shape[1]
    wanted_of = torch.zeros(len(target.matrix), heads)
    wanted_of[rows] = as_matrix(target, rows)
    if smoothing and target.kind != "regression":
        wanted_of = wanted_of * (1 - smoothing) + smoothing / (heads if target.kind == "classification" else 2)
    rng = np.random.default_rng((seed, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model.to(device).train()
        optimizer = make_optimizer(model, optim)
        members = [chosen for one in target.members() if len(chosen := np.intersect1d(one, rows))]
        dataset = ViewDataset(learn, adapter, seed=seed)
        loader = make_loader(dataset, _keys(members, learn.column("samples"), steps, seed), workers=workers)
        began = time.perf_counter()
        for step, batch in enumerate(loader):
            done = max(step / steps, (time.perf_counter() - began) / seconds)
            if done >= 1:
                break
            rate = learning_rate(int(done * steps), steps=steps, config=optim)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            views = batch.global_views.flatten(0, 1).to(device)  # view by view
            wanted = wanted_of[batch.rows].repeat(len(batch.global_views), 1).to(device)
            if mixup:
                share, other = float(rng.beta(mixup, mixup)), torch.randperm(len(views))
                views = share * _unit(views) + (1 - share) * _unit(views)[other]
                wanted = share * wanted + (1 - share) * wanted[other]
            loss = target.loss(model(views), wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
            optimizer.step()
            step_done(max((step + 1) / steps, (time.perf_counter() - began) / seconds))
    return model.eval()


def _unit(views: Tensor) -> Tensor:
    """Stored pixels as float in [0, 1], as `Normalize` reads them."""
    return views.float() / 255 if views.dtype == torch.uint8 else views.float()


def _keys(members: Sequence[NDArray[np.int64]], samples: Sequence[int], steps: int, seed: int) -> Iterator[list[Key]]:
    """Of each step the sources: classes alike, images of a class alike."""
    for step in range(steps):
        rng = np.random.default_rng((seed, step, 1))
        chosen = [int(rng.choice(members[k % len(members)])) for k in rng.permutation(SOURCES)]
        yield [(step, row, int(rng.integers(samples[row]))) for row in chosen]


@torch.inference_mode()
def predict(
    models: Sequence[tuple[nn.Module, NDArray[np.int64]]],
    target: Target,
    prepared: Iterable[Tensor],
    formation: Formation,
    *,
    device: str = "cpu",
) -> Answers:
    """Answers about each item by each model, (models, items, ...): the mean over its (n, C, H, W) parts and views.

    A model comes with the rows that it learnt from.
    """
    found = []
    for pixels in prepared:
        views = fixed_views(pixels, formation.views).split(PART)
        outputs = [torch.cat([model(part.to(device)).float().cpu() for part in views]) for model, _ in models]
        found.append([target.answers(one).mean(0) for one in outputs])
    by_model = np.stack([np.asarray(one) for one in found], axis=1)
    return np.stack([scaled_back(target, rows, one) for (_, rows), one in zip(models, by_model, strict=True)])
