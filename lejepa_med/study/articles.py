"""The linear probe of the articles on self-supervised encoders, LeJEPA's among them: LayerNorm, a linear layer, AdamW.

The vector is that of the last two layers side by side (`Formation.layers` 2: class tokens, or pooled maps). The
optimiser also trains the LayerNorm. Weight decay is 1e-6 and the rate 1e-3, with a linear warm-up and a cosine, as in
the LeJEPA repository's README (arXiv 2511.08544); batch, epochs and warm-up are not stated there and are ours.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lejepa_med.config import OptimConfig
from lejepa_med.probes.target import Answers, Target, as_matrix, scaled_back
from lejepa_med.training.optimizer import learning_rate

OPTIM = OptimConfig(lr=1e-3, weight_decay=1e-6, warmup=0.05, final_lr=0.0)
EPOCHS, BATCH = 100, 256
LEAST_STEPS = 500  # ten labels make one batch an epoch, and 100 steps leave the layer where it began


def articles_probe(
    target: Target,
    vectors: NDArray[Any],
    rows: NDArray[np.int64],
    scored: NDArray[Any],
    *,
    seed: int,
    epochs: int = EPOCHS,
) -> Answers:
    """Answers about `scored` (n, dim) of a probe that learnt from `rows` of `vectors` (learn, dim).

    Batches come from a permutation of each epoch; an incomplete last batch is used. Few rows get more epochs, so that
    there are 500 steps at least.
    """
    given, wanted = torch.from_numpy(np.asarray(vectors[rows], np.float32)), as_matrix(target, rows)
    steps_each = -(-len(rows) // BATCH)
    steps = max(epochs * steps_each, LEAST_STEPS)
    draw = torch.Generator().manual_seed(seed)
    dim, heads = given.shape[1], wanted.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, heads))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=OPTIM.weight_decay or 0.0)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if not len(order):
            order = torch.randperm(len(rows), generator=draw)
        batch, order = order[:BATCH], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, config=OPTIM)
        loss = target.loss(probe(given[batch]), wanted[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        outputs = probe(torch.from_numpy(np.asarray(scored, np.float32)))
    return scaled_back(target, rows, target.answers(outputs))
