"""Early stopping: the label-free score at equal distances, the encoder of the best one, and when to stop.

The score is that of `lejepa-med select`: C = loss / lambda^0.4 (LeJEPA, arXiv 2511.08544, equation 8), here in
evaluation mode on a fixed part of the archive with fixed views, so that it has no noise from one evaluation to the
next. When it is due depends on the step alone, so a resumed run evaluates and stops where an uninterrupted one does.
"""

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import lightning_fabric as lightning
import torch
from torch import Tensor

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import PretrainConfig, short_name
from lejepa_med.data.dataset import Batch, EpochBatches, ViewDataset, collate
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import Method
from lejepa_med.methods.registry import settings_class
from lejepa_med.methods.settings import RegularisedSettings
from lejepa_med.training.sample import evaluating
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.sharding import whole

ALPHA = 0.4  # exponent of lambda in the paper's score
SAMPLES = 256  # of the archive, in whole batches
COST = 0.05  # of the training's forward and backward passes that an evaluation's forward passes may add at most
SEED = 15_081  # of the fixed views; no run's own stream


@dataclass
class Best:
    """The best evaluation so far and its weights. A checkpoint holds both, so they are never of two states.

    Attributes:
        step: at which the encoder was the best.
        score: its score; smaller is better.
        evaluations: so far.
        since: evaluations in turn that were no better.
        planned: steps of the run that stopped before them, or 0.
        weights: of the encoder's backbone, on the CPU.
    """

    step: int = 0
    score: float = math.inf
    evaluations: int = 0
    since: int = 0
    planned: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, score: float, *, step: int, encoder: Any) -> None:
        """Take in an evaluation; called by all ranks, since a sharded encoder's weights are gathered."""
        self.evaluations += 1
        if score < self.score:
            self.step, self.score, self.since = step, score, 0
            self.weights = {
                name: whole(value).detach().to("cpu", copy=True)
                for name, value in encoder.backbone.state_dict().items()
            }
        else:  # a score that is no number is never better
            self.since += 1

    def state_dict(self) -> dict[str, Any]:
        """All but the weights, as JSON; empty before the first evaluation."""
        names = ("step", "score", "evaluations", "since", "planned")
        return {name: getattr(self, name) for name in names} if self.weights else {}

    def load_state_dict(self, saved: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """From a checkpoint."""
        for name, value in saved.items():
            setattr(self, name, value)
        self.weights = weights

    def text(self, *, steps: int) -> str:
        """What was kept and why the run ended, as a sentence."""
        kept = (
            f"Kept the encoder of step {self.step:,}, whose label-free score {self.score:.4g} is the best of "
            f"{self.evaluations} evaluations"
        )
        if not self.planned:
            return f"{kept}."
        return f"{kept}. Stopped at step {steps:,} of {self.planned:,}, after {self.since} in turn that were no better."


def check_stop_early(config: PretrainConfig) -> None:
    """Refuse early stopping where there is no such score.

    Raises:
        ConfigError: a method without lambda.
    """
    if config.train.stop_early and not issubclass(settings_class(config.objective.method)[0], RegularisedSettings):
        raise ConfigError(
            f"--train.stop-early needs the loss of LeJEPA, and {short_name(config.objective.method)} has another one.",
            remedy="Leave out --train.stop-early, or use --objective.method lejepa.",
        )


class Score:
    """Evaluates the label-free score when it is due; all ranks take part, each with its share of the samples."""

    def __init__(self, fabric: lightning.Fabric, config: RunConfig, manifest: Manifest, adapter: Adapter) -> None:
        self.fabric, self.config = fabric, config
        self._plan = (manifest, adapter)
        self._batches: list[Batch] = []
        objective = config.objective
        # without a lambda `check_stop_early` has refused it, and nothing is evaluated
        self.lamb = (isinstance(objective, RegularisedSettings) and objective.lamb) or 1.0
        train = config.train
        samples = sum(manifest.column("samples"))
        self.batch = train.batch_size // train.accumulate
        self.count = max(1, min(SAMPLES, samples) // self.batch)
        an_epoch = samples // train.batch_size * (config.monitor.every_epochs or 1)
        # a training step is a forward pass, and a backward one of twice its cost
        least = self.count / train.accumulate / (3 * COST)
        self.every = max(1, math.ceil(max(an_epoch, least) / train.log_every)) * train.log_every

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to evaluate after `step` finished steps."""
        return bool(self.config.train.stop_early) and (last or step % self.every == 0)

    @torch.no_grad()
    def of(self, method: Method) -> float:
        """The score of the method as it is, equal on all ranks; the method keeps its mode and statistics."""
        losses = []
        with evaluating(method):
            for number, batch in enumerate(self._fixed()):
                torch.manual_seed(number)  # `train_step` seeds anew before each step
                local = None if batch.local_views is None else self.fabric.to_device(batch.local_views)
                out = method(self.fabric.to_device(batch.global_views), local, seed=SEED, step=number)
                losses.append(out.loss.float())
        mean: Tensor = self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")  # type: ignore[assignment]
        value = float(mean / self.lamb**ALPHA)
        # all ranks must stop at one step, whatever the last bit of their sums
        return float(self.fabric.broadcast(value)) if self.fabric.world_size > 1 else value

    def _fixed(self) -> list[Batch]:
        """This rank's share of the fixed batches, read once."""
        if not self._batches:
            manifest, adapter = self._plan
            dataset = ViewDataset(manifest, adapter, seed=SEED)
            batches = EpochBatches(
                manifest.column("samples"),
                batch_size=self.batch,
                epochs=1,
                seed=SEED,
                rank=self.fabric.global_rank,
                world_size=self.fabric.world_size,
            )
            limit = self.config.monitor.cache_mib * 2**20
            for keys in islice(batches, self.count):
                batch = collate([dataset[key] for key in keys], n_global=adapter.spec.n_global)
                limit -= sum(tensor.numel() * tensor.element_size() for tensor in batch.pack()[1])
                if limit < 0 and self._batches:
                    break
                self._batches.append(batch)
        return self._batches
