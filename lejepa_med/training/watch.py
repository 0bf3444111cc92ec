"""The loop's one link to all that is observed: figures for a record, the verdict, evaluations when they are due."""

import json
import time
from collections.abc import Mapping
from typing import Any

import lightning_fabric as lightning
from torch import Tensor, nn

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.methods.settings import RegularisedSettings
from lejepa_med.training.evaluate import report_records
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.log import RunLog, plain
from lejepa_med.training.monitor import batch_figures, sigreg_figures
from lejepa_med.training.sample import FixedSample, evaluate
from lejepa_med.training.save import State
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.spacing import Spacing
from lejepa_med.training.verdict import KEYS, Verdict, judge

MOST_ROWS = 4000  # records that the verdict remembers; of more, every second one is forgotten
TRIAL, TRIAL_SECONDS = 8, 1.0  # records, or seconds, whose cost tells that of the first evaluation
LAST_SECONDS = 60.0  # what the evaluation at the end may take where the run's share allows less


class Watch:
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
        self.spacing = Spacing(config.monitor)
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
                self.spacing.resume(float(self.history[-1]["epoch"]))

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
        if self.config.monitor.share > 0 and self.spacing.cost is None and self.spacing.allowance() > 0:
            self._record_cost()
        return self.spacing.due(epoch)

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
        if self.spacing.cost is None:
            self.spacing.estimate(embedded - started, share=sample.progress)
        if len(sample.tensors) > known:  # else all of a small sample is prepared, and the last cost holds
            self._prepare_cost = (prepared - planned) / (len(sample.tensors) - known)
        records = max(1, len(sample.tensors))
        images = sum(map(len, sample.tensors)) / records
        return self._prepare_cost, (embedded - prepared) / records, max(1.0, images)

    def _evaluate(self, log: RunLog, *, epoch: float, last: bool) -> None:
        started = time.perf_counter()
        # slow archives (slides): the first evaluation may be the last one, and must not outlast the run
        until = started + max(LAST_SECONDS, self.spacing.allowance()) if last else float("inf")
        self.sample.fill(len(self.sample), until=until)
        projector = getattr(self.state.module, "projector", None)
        found = evaluate(
            self.sample,
            self.state.module.encoder,
            projector if isinstance(projector, nn.Module) else None,
            device=self.fabric.device,
        )
        seconds = time.perf_counter() - started
        self.spacing.done(seconds, epoch=epoch)
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
