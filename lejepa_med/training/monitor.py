"""What a run observes about itself: figures of a record, when an evaluation is due, and the loop's one link to both."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning_fabric as lightning
from torch import Tensor, nn

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import MonitorConfig
from lejepa_med.evaluation.spread import Figures, lidar, spread
from lejepa_med.methods.settings import RegularisedSettings
from lejepa_med.objective.normality import NormalityTest, floor_for
from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.log import RunLog, plain
from lejepa_med.training.report import report_records
from lejepa_med.training.sample import FixedSample, evaluate
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import State
from lejepa_med.training.verdict import KEYS, Verdict, judge

ROWS = 256  # samples of a batch that the figures look at: an eigen-decomposition of 256 takes milliseconds
LIDAR_ROWS = 512  # views times samples of a batch that LiDAR looks at


def batch_figures(features: Tensor, z: Tensor, z_views: Tensor | None = None) -> dict[str, float | int | None]:
    """`backbone/...` and `projector/...`: dim, rows and the figures of `spread`; with views, `projector/lidar`.

    This waits for the device, so it is for log steps only. Of larger batches the first 256 samples are used, for LiDAR
    the first 512 / views.

    Args:
        features: (B, dim), of one view.
        z: (B, K), of the same view.
        z_views: (V, B, K), all views, or None.
    """
    found: dict[str, float | int | None] = {}
    for name, vectors in (("backbone", features), ("projector", z)):
        table = vectors[:ROWS].detach().float().cpu().numpy()
        figures: Figures = spread(table)
        found |= {f"{name}/dim": table.shape[1], f"{name}/rows": len(table)}
        found |= {f"{name}/{key}": value for key, value in figures.items()}
    if z_views is not None and len(z_views) > 1:
        views = z_views[:, : max(2, LIDAR_ROWS // len(z_views))].detach().float().cpu().numpy()
        found["projector/lidar"] = lidar(views)
    return found


def sigreg_figures(method: nn.Module, sigreg: float, *, samples: int, dim: int) -> dict[str, float]:
    """`sigreg_above_floor`, and for the Epps-Pulley test `sigreg_per_sample`, in which one point gives .409.

    Empty where the method holds no test of normality.

    Args:
        method: what is trained.
        sigreg: the mean that its log shows.
        samples: of one view over all ranks, or of all views where they are pooled.
        dim: of the projector's output.
    """
    test = next((module for module in method.modules() if isinstance(module, SIGReg | NormalityTest)), None)
    if test is None:
        return {}
    found = {"sigreg_above_floor": sigreg - floor_for(test, n=samples, dim=dim)}
    return {**found, "sigreg_per_sample": sigreg / samples} if isinstance(test, SIGReg) else found


class RunningMean:
    """Means of scalars on their device, without a host synchronisation until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            detached = value.detach().double()
            self._sums[name] = self._sums[name] + detached if name in self._sums else detached
        self._count += 1

    def take(self) -> dict[str, float]:
        """Means since the last call; starts anew."""
        means = {name: float(total) / max(1, self._count) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class EvaluationTimer:
    """Keeps `spent <= share * elapsed`, counting the evaluation about to start at the cost of the last one.

    The first one's cost comes from `estimate`. Time is counted from the start of this session of the run.
    """

    def __init__(self, config: MonitorConfig, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.config, self.clock = config, clock
        self.started = clock()
        self.spent = 0.0
        self.cost: float | None = None
        self._epoch = 0.0
        self._time = self.started

    def resume(self, epoch: float) -> None:
        """Start at this epoch."""
        self._epoch = epoch

    def estimate(self, seconds: float, *, share: float) -> None:
        """`seconds` were spent on that share of a first evaluation."""
        self.spent += seconds
        self.cost = seconds * max(0.0, 1 / share - 1)

    def allowance(self) -> float:
        """Seconds that may be spent now."""
        return self.config.share * (self.clock() - self.started) - self.spent

    def due(self, epoch: float) -> bool:
        """Whether the interval has passed and the share is kept."""
        c = self.config
        if not c.online or c.share == 0 or self.cost is None or self.cost > self.allowance():
            return False
        return epoch - self._epoch >= c.every_epochs and self.clock() - self._time >= 60 * c.every_minutes

    def done(self, seconds: float, *, epoch: float) -> None:
        """An evaluation took `seconds`."""
        self.spent += seconds
        self.cost = seconds
        self._epoch, self._time = epoch, self.clock()


MOST_ROWS = 4000  # records that the verdict remembers; of more, every second one is forgotten
TRIAL, TRIAL_SECONDS = 8, 1.0  # records, or seconds, whose cost tells that of the first evaluation
LAST_SECONDS = 60.0  # what the evaluation at the end may take where the run's share allows less


class Monitor:
    """Rank 0 observes; the other ranks only wait for its evaluations. Nothing here touches the run's randomness."""

    def __init__(
        self,
        fabric: lightning.Fabric,
        config: RunConfig,
        run: RunFolder,
        state: State,
        manifest: Manifest,
        adapter: Adapter,
    ) -> None:
        self.fabric, self.config, self.run, self.state = fabric, config, run, state
        self.timer = EvaluationTimer(config.monitor)
        self.active = fabric.is_global_zero
        # a sharded encoder (FSDP) answers only when all ranks ask, and the sample lies on rank 0
        self.sharded = any(type(parameter).__name__ == "DTensor" for parameter in state.module.parameters())
        self._plan = (manifest, adapter)
        self._sample: FixedSample | None = None
        self._prepare_cost = 0.0
        self.history: list[dict[str, Any]] = []
        self.online: list[dict[str, Any]] = []
        if self.active:
            for record in read_lines(run.metrics):
                self._remember(record)
            self.online = read_lines(run.online)
            if self.history:
                self.timer.resume(float(self.history[-1]["epoch"]))

    def complete(
        self, record: dict[str, Any], *, features: Tensor, z: Tensor, z_views: Tensor | None = None
    ) -> dict[str, Any]:
        """The record with the figures of this rank's batch: features (B, dim), z (B, K), z_views (V, B, K) or None."""
        if not self.active:
            return record
        sigreg = record.get("sigreg")
        if sigreg is not None:
            objective = self.config.objective
            pooled = isinstance(objective, RegularisedSettings) and objective.pool == "pooled"
            views = len(z_views) if pooled and z_views is not None else 1
            samples = len(z) * self.fabric.world_size * views
            record |= sigreg_figures(self.state.module, sigreg, samples=samples, dim=z.shape[1])
        record |= batch_figures(features, z, z_views)
        self._remember(record)
        return record

    def verdict(self) -> Verdict:
        """On the records so far."""
        return judge(self.history, self.online)

    def evaluate(self, log: RunLog, *, epoch: float, last: bool) -> float:
        """Evaluate the encoder if that is due, or if this is the `last` record; all ranks call this at each record.

        Returns the seconds it took, which are not the training's.
        """
        if not self.config.monitor.online or self.sharded:
            return 0.0
        started = time.perf_counter()
        due = self.active and (last or self._due(epoch))
        if self.fabric.world_size > 1:
            due = bool(self.fabric.broadcast(due))
        if due and self.active:
            self._evaluate(log, epoch=epoch, last=last)
        if due:
            self.fabric.barrier()  # else the others' next collective would wait for rank 0, and might time out
        return time.perf_counter() - started

    def _due(self, epoch: float) -> bool:
        if self.config.monitor.share > 0 and self.timer.cost is None and self.timer.allowance() > 0:
            self._record_cost()
        return self.timer.due(epoch)

    def ending(self) -> float:
        """Seconds that the evaluation at the end and the report will take, extrapolated from a few records.

        Every call prepares further records of the sample, so it is no lost work where the run evaluates.
        """
        prepare, embed, images = self._record_cost()
        monitor, (manifest, _) = self.config.monitor, self._plan
        read, coloured = report_records(self.config, manifest)
        passes = images * self.config.vector.views  # of a record, where a coloured image takes one
        seconds = read * (prepare + embed) + coloured * embed / passes
        if not monitor.online or self.sharded:
            return seconds
        return seconds + min(LAST_SECONDS, len(self.sample) * prepare) + len(self.sample) * embed

    def _record_cost(self) -> tuple[float, float, float]:
        """Seconds to prepare a record and to embed it, from the next few of the sample, and its images (slices)."""
        started = time.perf_counter()
        sample = self.sample  # planned here, which takes its own time in a large archive
        known = len(sample.tensors)
        planned = time.perf_counter()
        sample.fill(known + TRIAL, until=planned + TRIAL_SECONDS)
        prepared = time.perf_counter()
        if not self.sharded:
            sample.embed(self.state.module.encoder, device=self.fabric.device)
        embedded = time.perf_counter()
        if self.timer.cost is None:
            self.timer.estimate(embedded - started, share=sample.progress)
        if len(sample.tensors) > known:  # else all of a small sample is prepared, and the last cost holds
            self._prepare_cost = (prepared - planned) / (len(sample.tensors) - known)
        records = max(1, len(sample.tensors))
        images = sum(map(len, sample.tensors)) / records
        return self._prepare_cost, (embedded - prepared) / records, max(1.0, images)

    def _evaluate(self, log: RunLog, *, epoch: float, last: bool) -> None:
        started = time.perf_counter()
        # slow archives (slides): the first evaluation may be the last one, and must not outlast the run
        until = started + max(LAST_SECONDS, self.timer.allowance()) if last else float("inf")
        self.sample.fill(len(self.sample), until=until)
        projector = getattr(self.state.module, "projector", None)
        found = evaluate(
            self.sample,
            self.state.module.encoder,
            projector if isinstance(projector, nn.Module) else None,
            device=self.fabric.device,
        )
        seconds = time.perf_counter() - started
        self.timer.done(seconds, epoch=epoch)
        record = {"step": self.state.step, "epoch": epoch, "seconds": round(seconds, 3)}
        record |= {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in found.items()}
        self.online.append(record)
        with self.run.online.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain(record), allow_nan=False) + "\n")
        log.online(record)

    @property
    def sample(self) -> FixedSample:
        """Planned when it is first needed."""
        if self._sample is None:
            monitor, (manifest, adapter) = self.config.monitor, self._plan
            self._sample = FixedSample(
                manifest,
                adapter,
                size=monitor.sample,
                cache_bytes=monitor.cache_mib * 2**20,
            )
        return self._sample

    def _remember(self, record: Mapping[str, Any]) -> None:
        self.history.append({key: record[key] for key in KEYS if key in record})
        if len(self.history) > MOST_ROWS:
            recent = MOST_ROWS // 10
            self.history = self.history[:-recent:2] + self.history[-recent:]
