"""pretrain: archive -> run folder. Read `pretrain`, then `fit`, then `train_step`: that is the whole of it."""

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning_fabric as lightning
from rich.console import Console
from rich.markup import escape

from data_adapters.base import Adapter
from data_adapters.errors import naming
from data_adapters.manifest import Manifest
from lejepa_med.archive import check_exists, open_archive, scan
from lejepa_med.config import PretrainConfig, save_config, with_own_code
from lejepa_med.cpu import Threads, loader_workers
from lejepa_med.data.dataset import EpochBatches, ViewDataset
from lejepa_med.data.loader import TimedBatches, make_loader
from lejepa_med.distributed import ranks_here
from lejepa_med.errors import ConfigError
from lejepa_med.training.checkpoint import load_checkpoint, not_finite
from lejepa_med.training.device import check_bf16, device_of, make_fabric
from lejepa_med.training.dry_run import print_plan, rehearse
from lejepa_med.training.early_stopping import Score, check_stop_early
from lejepa_med.training.folder import DraftFolder, RunFolder
from lejepa_med.training.log import BadFiles, RunLog
from lejepa_med.training.monitor import Monitor, RunningMean
from lejepa_med.training.optimizer import learning_rate
from lejepa_med.training.plan import Planner
from lejepa_med.training.report import write_run_report
from lejepa_med.training.resolve import check_batch, create_adapter, fit_to_archive, origins, resolve_machine, warnings
from lejepa_med.training.save import Saver
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import State, build_state, raw_optimizer, restore, train_step
from lejepa_med.training.stop import REPORT_SECONDS, StopSignal, at_most


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        step: last finished step.
        steps: of the whole run, as planned at its end.
        finished: False after Ctrl-C or SIGTERM; then `--resume` continues.
    """

    folder: Path
    step: int
    steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Pretrain an encoder on an archive.

    Args:
        config: settings; None values are chosen from the machine and the archive.
        resume: continue the run in `config.out`, bit for bit.
        overwrite: delete the run in `config.out` first.
        dry_run: instead of training, print the plan on standard output and leave no run behind.
        console: where progress is shown.

    Raises:
        UserError: bad settings, an unreadable archive, too many bad files, or numbers that stopped being finite.
    """
    config = config.model_copy(update={"archive": config.archive.resolve()})  # so that --resume works from any folder
    if config.model.init is not None and config.model.init.exists():
        init = config.model.init.resolve()
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": init})})
    config = with_own_code(config, lambda _, name: str(Path(name).expanduser().resolve()))
    run = RunFolder(config.out)
    saved = None
    if resume:
        saved = run.reopen(config)  # before Fabric, which gets the run's own device and precision
    else:
        resolve_machine(config, device=device_of(config))  # by every rank: a wrong setting must end all of them
    fabric = make_fabric(saved or config)
    console = console or Console(stderr=True, quiet=not fabric.is_global_zero)
    try:
        if fabric.is_global_zero:
            run.lock()
        target = DraftFolder(run) if dry_run else run
        return _pretrain(fabric, target, config, saved, overwrite=overwrite, console=console)
    finally:
        if fabric.is_global_zero:
            run.release()


def _pretrain(
    fabric: lightning.Fabric,
    run: RunFolder,
    given: PretrainConfig,
    saved: RunConfig | None,
    *,
    overwrite: bool,
    console: Console,
) -> RunResult:
    """Train with `given` settings, or go on with the `saved` ones of a run."""
    check_batch(saved or given, processes=fabric.world_size)
    check_stop_early(saved or given)
    state, there = None, run.run if isinstance(run, DraftFolder) else run
    try:
        if saved is not None:
            config = saved
            manifest, adapter = open_archive(there.manifest)
        else:
            config, manifest, adapter = _begin(fabric, run, given, overwrite=overwrite, console=console)
            fabric = make_fabric(config)  # again: whether bf16 can be used shows only when the shapes are known
        for warning in warnings(config, samples=sum(manifest.column("samples"))):
            console.print(f"[yellow]warning[/yellow] {warning}", soft_wrap=True, highlight=False)
        checkpoint = load_checkpoint(there.checkpoints) if saved is not None else None
        state = build_state(fabric, config, adapter, started=checkpoint is not None)
        for note in state.module.encoder.notes:
            console.print(f"weights: {escape(note)}", soft_wrap=True, highlight=False)
        if checkpoint is not None:
            restore(fabric, state, checkpoint)
        if isinstance(run, DraftFolder):
            return _plan(fabric, config, run, state, manifest, adapter, resume=saved is not None)
        fit(fabric, config, run, state, manifest, adapter, console=console)
    except BaseException:  # Ctrl-C included: the corrected command must start in this folder
        if state is None or state.step == 0:
            run.withdraw()
        raise
    result = RunResult(folder=run.root, step=state.step, steps=state.plan.steps)
    if fabric.is_global_zero and (result.step or result.finished):
        shutil.rmtree(run.journal, ignore_errors=True)
        with at_most(None if result.finished else REPORT_SECONDS):
            write_run_report(
                run, config, manifest, console=console, finished=result.finished, device=str(fabric.device)
            )
        if result.finished and state.plan.minutes is not None:
            console.print(state.plan.outcome(), soft_wrap=True, highlight=False)
    fabric.barrier()
    return result


def _begin(
    fabric: lightning.Fabric, run: RunFolder, given: PretrainConfig, *, overwrite: bool, console: Console
) -> tuple[RunConfig, Manifest, Adapter]:
    """Scan on rank 0, resolve the settings, write the first files; the other ranks read them."""
    config: PretrainConfig = given
    if fabric.is_global_zero:
        if given.train.epochs is not None and given.train.minutes is not None:
            raise ConfigError(
                "A run has a length in epochs or in minutes, not both.",
                remedy="Leave out --epochs or --minutes.",
            )
        machine = resolve_machine(given, device=fabric.device.type)
        adapter = create_adapter(machine)  # before `start`: a wrong setting must not cost the run that is replaced
        check_exists(machine.archive, machine.data.catalog)
        if run.start(overwrite=overwrite):
            said = f"{run.root} held a run that ended before its first checkpoint; it starts anew."
            console.print(said, soft_wrap=True, highlight=False)
        save_config(machine, run.config, only_local=True)
        result = scan(
            adapter,
            machine.archive,
            **machine.data.table(),
            verify=machine.data.verify,
            journal=run.journal,
            split=machine.data.split,
            console=console,
        )
        fitted = fit_to_archive(machine, result.manifest, given=given, processes=fabric.world_size)
        console.print(f"training {fitted.course}", soft_wrap=True, highlight=False)
        asked, spec = given.train.precision, fitted.adapter.spec
        final = check_bf16(fitted.config, spec, asked=asked, world_size=fabric.world_size, console=console)
        result.write(run.root, manifest=fitted.manifest)
        save_config(final, run.config, origins=origins(final, given=given, machine=machine, fitted=fitted))
        config = final
    fabric.barrier()
    saved = run.reopen(config)
    return saved, *open_archive(run.manifest)


def fit(
    fabric: lightning.Fabric,
    config: RunConfig,
    run: RunFolder,
    state: State,
    manifest: Manifest,
    adapter: Adapter,
    *,
    console: Console,
) -> None:
    """Train from `state.step` to the end of `state.plan` or to a stop signal."""
    dataset, batches = make_data(fabric, config, manifest, adapter, first_step=state.step)
    plan = state.plan
    if plan.minutes is None:
        plan.fix(batches.steps_per_epoch * batches.epochs)
    if state.best.planned:  # it stopped early
        plan.end(state.step)
    bad = BadFiles(run.bad_files, manifest, limit=config.data.bad_limit)
    save = Saver(fabric, config, run, state, manifest, adapter)
    if fabric.is_global_zero:
        run.truncate_metrics(state.step)
    means, first_step = RunningMean(), state.step
    monitor = Monitor(fabric, config, run, state, manifest, adapter)
    score = Score(fabric, config, manifest, adapter)
    quiet = not fabric.is_global_zero
    with (
        naming(run.root),
        RunLog(run.root, plan=plan, first_step=first_step, console=console, quiet=quiet) as log,
        StopSignal() as stop,
        Threads(config.train.threads, active=not _on_gpu(fabric), ranks=ranks_here()) as threads,
    ):
        if said := threads.started(run.last_threads()):
            log.say(said)
        if state.step == plan.steps:  # of a run without steps, or one that was killed at its end
            save.now()
            return
        if state.step and not raw_optimizer(state.optimizer).state:
            log.say("This run was finished, and its settings have changed since: the optimiser starts anew.")
        planner = Planner(fabric, plan, ending=monitor.ending, say=log.say)
        loader = make_loader(dataset, batches, workers=_workers(fabric, config), pin=_on_gpu(fabric))
        timed = TimedBatches(loader, partial(stop.at_once, fabric))
        started, waited, counted = time.perf_counter(), 0.0, 0
        for batch in timed:
            values = train_step(fabric, config, state, batch)
            planner.after(state.step)
            if said := threads.step():
                log.say(said)
            seen = {name: values.pop(name) for name in ("features", "z", "z_views")}
            means.add(**values)
            counted += batch.global_views.shape[1] * fabric.world_size
            if not quiet:
                bad.add(batch.bad, step=state.step, reads=batch.global_views.shape[1])
            log.step(state.step)
            place, length = plan.position(state.step - 1)
            scored: dict[str, float] = {}
            if score.due(state.step, last=state.step == plan.steps):
                before = time.perf_counter()
                scored["score"] = score.of(state.module)
                state.best.add(scored["score"], step=state.step, encoder=state.module.encoder)
                if state.best.since >= config.train.stop_early and state.step < plan.steps:
                    state.best.planned = plan.steps
                    plan.end(state.step)
                started += time.perf_counter() - before
            finished = state.step == plan.steps
            if finished and state.best.weights:
                log.say(state.best.text(steps=plan.steps))
            if state.step % config.train.log_every == 0 or finished:
                now = time.perf_counter()
                record = {
                    "step": state.step,
                    "epoch": round(state.step / batches.steps_per_epoch, 4),
                    **means.take(),
                    **scored,
                    "lr": learning_rate(place, steps=length, config=config.optim),
                    "images_per_second": counted / (now - started),
                    "data_wait": min(1.0, (timed.waited - waited) / (now - started)),
                    "session_steps": state.step - first_step,
                    "threads": threads.count,
                }
                if not all(map(_finite, (record["loss"], record["gradient_norm"]))):
                    raise not_finite(state.step)
                log.record(monitor.complete(record, **seen), verdict=monitor.verdict())
                evaluate = partial(monitor.evaluate, log, epoch=record["epoch"], last=finished)
                evaluation = stop.at_once(fabric, evaluate, 0.0)
                started, waited, counted = now + evaluation, timed.waited, 0
            stopping = not finished and stop.requested(fabric, step=state.step, every=config.train.log_every)
            if stopping:
                break
            if finished or save.due(fabric):
                save.now()
            if finished:
                break
        loader.close()
        if state.step == 0:
            log.say("Stopped before the first step; nothing is lost. Start the command again.")
        elif state.step < plan.steps:  # stopped, after a step or while it waited for a batch
            save.now()
            log.say(f"Stopped at step {state.step} of {plan.steps}; everything is saved. Continue with --resume.")


def _plan(
    fabric: lightning.Fabric,
    config: RunConfig,
    draft: DraftFolder,
    state: State,
    manifest: Manifest,
    adapter: Adapter,
    *,
    resume: bool,
) -> RunResult:
    """Print what `fit` would do from here, after a few of its steps whose results are thrown away."""
    step = state.step
    dataset, batches = make_data(fabric, config, manifest, adapter, first_step=step)
    if state.plan.minutes is None:
        state.plan.fix(batches.steps_per_epoch * batches.epochs)
    if state.best.planned:
        state.plan.end(step)
    if fabric.is_global_zero and resume:
        draft.open()
    try:
        workers = _workers(fabric, config)
        loader = make_loader(dataset, batches, workers=workers, pin=_on_gpu(fabric))
        with Threads(config.train.threads, active=not _on_gpu(fabric), ranks=ranks_here()) as threads:
            found = rehearse(
                fabric, config, draft, state, manifest, adapter, loader=loader, workers=workers, threads=threads
            )
        loader.close()
        if fabric.is_global_zero:
            print_plan(config, draft, manifest, adapter, found, workers=workers, threads=threads.count, resume=resume)
    finally:
        if fabric.is_global_zero:
            draft.withdraw()
    return RunResult(folder=draft.run.root, step=step, steps=found.steps(config))


def make_data(
    fabric: lightning.Fabric, config: RunConfig, manifest: Manifest, adapter: Adapter, *, first_step: int
) -> tuple[ViewDataset, EpochBatches]:
    """Dataset and batches from `first_step` on; by minutes without an end, since the plan ends the run."""
    dataset = ViewDataset(manifest, adapter, seed=config.train.seed)
    batches = EpochBatches(
        manifest.column("samples"),
        batch_size=config.train.batch_size,
        epochs=config.train.epochs if config.train.epochs is not None else 1_000_000,
        seed=config.train.seed,
        first_step=first_step,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    return dataset, batches


def _workers(fabric: lightning.Fabric, config: RunConfig) -> int:
    return loader_workers(config.data.workers, on_gpu=_on_gpu(fabric), ranks=ranks_here())


def _on_gpu(fabric: lightning.Fabric) -> bool:
    return bool(fabric.device.type == "cuda")


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
