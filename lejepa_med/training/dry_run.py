"""pretrain --dry-run: what a run would do, from its resolved settings and a few real steps that are thrown away."""

import multiprocessing
import resource
import shutil
import statistics
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric as lightning
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from data_adapters.tables import count
from lejepa_med.config import (
    GIVEN,
    MACHINE,
    MAY_CHANGE,
    SETTLED,
    default_origin,
    flat,
    origins_of,
    read_settings,
    setting_text,
)
from lejepa_med.cpu import Threads
from lejepa_med.data.dataset import Batch
from lejepa_med.training.checkpoint import not_finite
from lejepa_med.training.folder import DraftFolder, sizes_text, weight, weight_text
from lejepa_med.training.log import BadFiles
from lejepa_med.training.monitor import Monitor, batch_figures
from lejepa_med.training.plan import COLD, seconds_for_steps, steps_that_fit
from lejepa_med.training.resolve import course
from lejepa_med.training.save import Saver
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import State, formed, raw_optimizer, train_step

FEWEST_TIMED, MOST_STEPS, TRIAL_SECONDS = 4, 60, 20.0  # of the trial: timed steps at least, steps and time at most
FASTER, SLOWER = 0.9, 1.2  # factors of the pace that the range holds at least: a run is longer than its trial
RECORD_BYTES, REPORT_BYTES = 3_000, 2_000_000  # of a record in metrics.jsonl and TensorBoard; of report.html, 1 to 3 MB
UNKNOWN = "not recorded"  # by an earlier release


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a few steps from step `first` on have shown. Seconds, and bytes.

    Attributes:
        first: finished steps before them, which a resumed run has.
        planned: steps of the whole run; 0 where it is one by minutes that has not been planned yet.
        left: of the promised minutes; None of a run by epochs.
        times: of the timed steps, without the first ones; empty where no step is left.
        figures: for the figures of one record.
        saving: for a checkpoint with its encoder folder.
        ending: for the last evaluation and the report.
        sizes: of what the run folder holds at its end, by name.
        moments: of the optimiser, which a checkpoint holds as long as the run is not finished.
        sample: memory of the evaluation sample.
        memory: largest use, in words.
    """

    first: int
    planned: int
    left: float | None
    times: list[float]
    figures: float
    saving: float
    ending: float
    sizes: dict[str, int]
    moments: int
    sample: int
    memory: str

    def paces(self, config: RunConfig) -> tuple[float, float, float]:
        """Seconds of a step: the mean, and the quartiles of those timed or a fixed part of the mean, the wider ones."""
        mean = statistics.fmean(self.times)
        quarters = statistics.quantiles(self.times, n=4) if len(self.times) > 1 else [mean] * 3
        record = self.figures / config.train.log_every
        return mean + record, min(FASTER * mean, quarters[0]) + record, max(SLOWER * mean, quarters[2]) + record

    def steps(self, config: RunConfig, *, pace: float | None = None) -> int:
        """Of the whole run; of one by minutes as many as fit at this pace, by default the mean one."""
        minutes = config.train.minutes
        if self.left is None or minutes is None or not self.times:
            return self.planned
        usable = seconds_for_steps(minutes, left=self.left, ending=self.ending)
        usable *= 1 - _share(config)
        seconds = self.paces(config)[0] if pace is None else pace
        planned = self.planned or self.first
        return steps_that_fit(done=self.first, planned=planned, seconds=usable, pace=seconds)

    def seconds(self, config: RunConfig, *, pace: float) -> float:
        """From the end of the scan to the end of a run by epochs."""
        training = (self.planned - self.first) * pace / (1 - _share(config))
        every = config.train.checkpoint_minutes * 60
        return training + self.saving * (1 + (training // every if every else 0)) + self.ending


def rehearse(
    fabric: lightning.Fabric,
    config: RunConfig,
    draft: DraftFolder,
    state: State,
    manifest: Manifest,
    adapter: Adapter,
    *,
    loader: Iterable[Batch],
    workers: int,
    threads: Threads,
) -> Rehearsal:
    """Train a few steps, save once into the draft, and evaluate a few records; called by all ranks.

    Raises:
        UserError: what would end the run itself, such as a loss that is not finite.
    """
    plan, first = state.plan, state.step
    left, planned = plan.seconds_left, plan.steps if plan.minutes is None or first else 0
    todo = plan.steps - first
    bad = BadFiles(draft.bad_files, manifest, limit=config.data.bad_limit)
    _forget_peak(fabric.device)
    times: list[float] = []
    values: dict[str, Any] = {}
    helpers = 0
    # workers have prepared batches while the first steps paid for memory and kernels, so the next ones wait for nothing
    cold = COLD + 2 * workers
    started = since = time.perf_counter()
    for batch in loader if todo else ():
        values = train_step(fabric, config, state, batch)
        now = _now(fabric.device)
        times.append(now - since)
        since = now
        threads.step()
        if fabric.is_global_zero:
            bad.add(batch.bad, step=state.step, reads=batch.global_views.shape[1])
        enough = len(times) >= cold + FEWEST_TIMED and now - started > TRIAL_SECONDS
        enough |= len(times) >= min(todo, cold + MOST_STEPS)
        if fabric.broadcast(enough) if fabric.world_size > 1 else enough:
            helpers = max((_peak(child.pid) for child in multiprocessing.active_children()), default=0)
            break
    figures = 0.0
    if values:
        if not all(float(values[name]) * 0 == 0 for name in ("loss", "gradient_norm")):
            raise not_finite(state.step)
        for _ in range(2):  # the first call is slower than those of a run
            since = _now(fabric.device)
            batch_figures(values["features"], values["z"], values["z_views"])
            figures = _now(fabric.device) - since
    moments = sum(
        value.numel() * value.element_size()
        for kept in raw_optimizer(state.optimizer).state.values()
        for value in kept.values()
        if isinstance(value, torch.Tensor)
    )
    finished = state.step == plan.steps
    since = time.perf_counter()
    Saver(fabric, config, draft, state, manifest, adapter).now()
    saving = time.perf_counter() - since
    ending, sample, sizes = 0.0, 0, {}
    if fabric.is_global_zero:
        monitor = Monitor(fabric, config, draft, state, manifest, adapter)
        monitor.ending()
        ending = monitor.ending()  # the second time, without the cost of a first pass
        kept = monitor.sample.tensors
        bytes_each = sum(tensor.numel() * tensor.element_size() for tensor in kept) / max(1, len(kept))
        sample = min(config.monitor.cache_mib * 2**20, round(bytes_each * len(monitor.sample)))
        sizes = weight(draft.root)
        if not finished:
            sizes["checkpoints"] -= moments
        if config.train.stop_early and not state.best.weights:
            sizes["checkpoints"] += sizes["encoder"]  # a checkpoint also holds the best encoder
    return Rehearsal(
        first=first,
        planned=planned,
        left=left,
        times=times[cold:] if len(times) >= cold + FEWEST_TIMED else times[min(COLD, len(times) - 1) :],
        figures=figures,
        saving=saving,
        ending=ending,
        sizes=sizes,
        moments=moments,
        sample=sample if config.monitor.online else 0,
        memory=_memory(fabric.device, helpers=helpers, workers=workers, ranks=fabric.world_size),
    )


def print_plan(
    config: RunConfig,
    draft: DraftFolder,
    manifest: Manifest,
    adapter: Adapter,
    found: Rehearsal,
    *,
    workers: int,
    threads: int,
    resume: bool,
) -> None:
    """Print the plan and every setting on standard output."""
    console = Console()
    table = Table(title="plan (dry run: nothing was trained)", show_header=False, title_justify="left")
    samples = sum(manifest.column("samples"))
    for name, text in _plan_rows(config, draft, adapter, found, samples=samples, resume=resume):
        table.add_row(name, escape(text))
    items = f"{count(len(manifest), 'item')} in {count(len(set(manifest.column('group'))), 'group')}"
    table.add_row("reads", f"{items}, {count(samples, 'sample')} an epoch")
    console.print(table, highlight=False)
    console.print(_settings(config, draft, adapter, workers=workers, threads=threads, resume=resume), highlight=False)
    console.print(
        "given: by you. Chosen for this machine: from its device and the architecture. Chosen for this archive: from "
        "what the scan found. The rest: defaults. Repeat the command without --dry-run to train.",
        soft_wrap=True,
        highlight=False,
    )


def _plan_rows(
    config: RunConfig, draft: DraftFolder, adapter: Adapter, found: Rehearsal, *, samples: int, resume: bool
) -> list[tuple[str, str]]:
    train, views, batch = config.train, config.views.n_global + config.views.n_local, config.train.batch_size
    rows = [("trains", course(config, samples=samples, chosen="")), ("steps", _steps_text(config, found, samples))]
    if resume:
        rows.append(("done", f"{count(found.first, 'step')}; left: {_left_text(config, found)}"))
    parts = f", in {train.accumulate} parts" if train.accumulate > 1 else ""
    images = f"{count(batch, 'sample')} with {count(views, 'view')} each"
    rows += [("batch", f"{images}, {batch * views:,} images a step{parts}"), ("time", _time_text(config, found))]
    rows.append(("vectors", formed(config.vector, adapter.spec).text(dims=adapter.spec.dims)))
    rows.append(("memory", found.memory + (f"; {_mb(found.sample)} more for evaluations" if found.sample else "")))
    records = max(1, (found.steps(config) - found.first) // train.log_every)
    sizes = {**found.sizes, "report.html": REPORT_BYTES, "curves": RECORD_BYTES * records}
    now = f"{weight_text(draft.run.root, without=draft.root.name)} now; " if resume else ""
    room = 2 * (sizes["checkpoints"] + found.moments) + 2 * sizes["encoder"] + REPORT_BYTES + RECORD_BYTES * records
    if resume:
        room -= sizes["checkpoints"] + found.moments + sizes["encoder"]
    # what lies in the draft, or in a run that will be replaced, will be gone by then
    free = shutil.disk_usage(draft.root).free + sum(weight(draft.root if resume else draft.run.root).values())
    text = f"{now}about {sizes_text(dict(sorted(sizes.items(), key=lambda one: -one[1])))} at the end"
    if found.moments:
        text += f"; {_mb(found.moments)} more for the optimiser's state while it trains"
    text += f". With a second checkpoint while that is written it needs {_mb(room)}{' more' if resume else ''}; free "
    text += f"here: {_mb(free)}"
    rows.append(("disk", text if free > room else f"{text}, TOO LITTLE: free space, or give another --out"))
    return rows


def _steps_text(config: RunConfig, found: Rehearsal, samples: int) -> str:
    epoch = samples // config.train.batch_size
    steps = found.steps(config)
    if found.left is None:
        return f"{steps:,}: {count(config.train.epochs or 0, 'epoch')} of {count(epoch, 'step')}"
    if not found.times:
        return f"{steps:,}"
    _, fast, slow = found.paces(config)
    low, high = found.steps(config, pace=slow), found.steps(config, pace=fast)
    return (
        f"about {steps:,} ({low:,} to {high:,}): {steps / epoch:.3g} epochs of {count(epoch, 'step')}; the run follows "
        "its own pace, so that the minutes hold"
    )


def _left_text(config: RunConfig, found: Rehearsal) -> str:
    steps = found.steps(config) - found.first
    if steps == 0:
        return "nothing but the report"
    if found.left is None:
        return count(steps, "step")
    return f"about {count(steps, 'step')}, {_duration(max(0.0, found.left))} of the minutes"


def _time_text(config: RunConfig, found: Rehearsal) -> str:
    if not found.times:
        return f"about {_duration(found.saving + found.ending)}: encoder folder, last evaluation and report"
    mean, fast, slow = found.paces(config)
    timed = (
        f"{count(len(found.times), 'timed step')}: {_seconds(mean)} each, range {_seconds(fast)} to {_seconds(slow)}"
    )
    end = f"the last evaluation and the report about {_duration(found.ending)}"
    if found.left is not None:
        return f"{_duration(max(0.0, found.left))} after the scan, as asked by --minutes ({timed}; {end})"
    about, least, most = (found.seconds(config, pace=pace) for pace in (mean, fast, slow))
    share = f"evaluations at most {_share(config):.0%}, " if _share(config) else ""
    return (
        f"about {_duration(about)} after the scan ({_duration(least)} to {_duration(most)}), estimated from {timed}; "
        f"{share}a checkpoint {_seconds(found.saving)}, {end}. Other work on this machine makes it longer"
    )


def _share(config: RunConfig) -> float:
    """The part of the time that evaluations during the run may take."""
    return min(0.9, config.monitor.share) if config.monitor.online else 0.0


def _settings(
    config: RunConfig, draft: DraftFolder, adapter: Adapter, *, workers: int, threads: int, resume: bool
) -> Table:
    """Name, value and origin of every setting, section by section."""
    tree = read_settings(draft.run.config if resume else draft.config)
    known = origins_of(tree)
    saved = flat(tree)
    values = flat(config.model_dump(mode="json"))
    options = adapter.describe()["options"].items()
    values |= {f"data.options.{k}": v for k, v in options if k not in SETTLED}
    values |= flat({"data": {"options": config.data.options}})
    order = list(type(config).model_fields)
    table = Table(title="settings", title_justify="left", box=None, pad_edge=False)
    for title in ("setting", "value", "origin"):
        table.add_column(title, overflow="fold", no_wrap=title != "value")
    section = ""
    for name, value in sorted(values.items(), key=lambda one: order.index(one[0].partition(".")[0])):
        head = name.rpartition(".")[0].split(".")[0]
        if head != section:
            table.add_section()
            table.add_row(f"[bold]{head}")
            section = head
        origin = UNKNOWN if known is None else known.get(name, default_origin(name))
        if resume and name in MAY_CHANGE and value != saved.get(name):
            origin = GIVEN
        shown = setting_text(name, value)
        if value is None and name in ("data.workers", "train.threads"):
            shown, origin = f"{workers if name == 'data.workers' else threads} now", MACHINE
        table.add_row(name, escape(shown), origin)
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min" if minutes >= 9.5 else f"{minutes:.1f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 9.5e6 else f"{size / 1e6:,.1f} MB"


def _now(device: torch.device) -> float:
    """The time when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _forget_peak(device: torch.device) -> None:
    """Let peaks of memory count from here on, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # elsewhere than on Linux the peak is that of the process's whole life, scan included
        Path("/proc/self/clear_refs").write_text("5")


def _peak(process: int | None = None) -> int:
    """The largest memory of a process in bytes, as the kernel counts it; of another process 0 where it does not say."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return 0 if process else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory(device: torch.device, *, helpers: int, workers: int, ranks: int) -> str:
    text = f"{_mb(_peak())} at most, PyTorch included"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        text = f"on the GPU {_mb(allocated)} at most ({_mb(reserved)} reserved of {_mb(total)}); on the CPU {text}"
    if workers:
        text += f", and {count(workers, 'worker')} with up to {_mb(helpers)} each, part of it shared"
    return text + (f"; this for each of {ranks} processes" if ranks > 1 else "")
