"""compare: the encoder of a run beside what a lab could use instead, on the lab's own labels, with a verdict in words.

All rows see the same images with the same preprocessing, form their vectors alike, and learn from the same draws of
labels: classes, numbers, or several labels an image. OUT/rows/NAME.npz is written when a row is done, so a comparison
that was interrupted goes on with the next one.
"""

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from data_adapters.atomic import write_text
from data_adapters.tables import count
from lejepa_med.archive import progress_bar
from lejepa_med.config import PretrainConfig
from lejepa_med.cpu import loader_workers
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised
from lejepa_med.page import render_page
from lejepa_med.plot import COLOURS, Series, plot
from lejepa_med.probes.examples import Kind
from lejepa_med.probes.fewshot import LINEAR, headline, learn_few
from lejepa_med.probes.scores import draws_interval
from lejepa_med.probes.target import Answers, Target
from lejepa_med.study.labelled import (
    ALL,
    FEW_GROUPS,
    SHOTS,
    Sides,
    kept,
    labelled_archive,
    listed,
    run_config,
    seen,
    sides,
    slug,
    usable_shots,
    vectors_of,
    write_back,
)
from lejepa_med.study.supervised import SMALL, STEPS, network, predict, train
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.loop import pretrain

OWN, RANDOM, PIXELS = "your encoder", "random weights", "8 x 8 pixels"
SUPERVISED = "a small network trained on the labels alone"
LEAST_SUPERVISED, SUPERVISED_DRAWS = 10, 3  # labels per class from which it is trained, and of how many draws


class Thumbnail(nn.Module):
    """Not an encoder, but what one must be better than: 8 x 8 means of the prepared image (8 x 8 x 8 of a volume)."""

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        self.dims, self.formation = encoder.module.dims, encoder.formation
        self.vector_dim = encoder.adapter.spec.channels * 8**self.dims

    def form(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W) -> (B, vector_dim), in any number."""
        pool = adaptive_avg_pool2d if self.dims == 2 else adaptive_avg_pool3d
        return pool(pixels.float(), 8).flatten(1)


@dataclass(frozen=True)
class Contender:
    """One row: its name, what it depends on beside one's own encoder, and how it is measured."""

    name: str
    settings: str
    measure: Callable[[], "Measured"]


@dataclass(frozen=True)
class Measured:
    """A contender's answers.

    Attributes:
        name: in tables.
        answers: by number of labels ("all" for all): what the probe says, (draws, test items, ...).
        score: likewise: the headline score of each draw, (draws,); balanced accuracy of classes.
        knn: the score of 20-NN with all labels.
        dim: length of a vector.
        milliseconds: to embed an image on this machine, reading included.

    The last three are None of a row without vectors, and its numbers of labels and draws may be fewer.
    """

    name: str
    answers: dict[str, Answers]
    score: dict[str, NDArray[np.float64]]
    knn: float | None
    dim: int | None
    milliseconds: float | None


@dataclass(frozen=True)
class Gain:
    """Points of the score (hundredths) that one's own encoder is above a rival, with the 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> int:
        """1 better, -1 worse, 0 within chance."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """All rows, one's own first; `gains[name][shots]` of the rivals, `sentences` of verdict, and `notes`."""

    rows: Sequence[Measured]
    gains: dict[str, dict[str, Gain]]
    sentences: Sequence[str]
    notes: Sequence[str]
    target: Target


def compare(
    run: Path,
    out: Path,
    *,
    archive: Path | None = None,
    catalog: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    kind: Kind = "classification",
    on: str | None = None,
    weights: Sequence[str] = (),
    methods: Sequence[str] = (),
    minutes: float | None = None,
    supervised: bool = False,
    shots: Sequence[int] = SHOTS,
    draws: int = 20,
    allow_leak: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> Comparison:
    """Compare, and write OUT/compare.html and OUT/compare.csv.

    Args:
        run: run folder.
        out: folder of the comparison, continued where it was left.
        archive: folder with the labelled images; None: the run's.
        catalog: with labels, and where known groups and splits; None: the run's.
        group_column: of `catalog`; None: group.
        label_column: of `catalog`; None: label.
        kind: of the labels: classes, numbers (regression), or several an image, written a;b (multilabel).
        on: split to score on, learnt from `train`; None: `val` or else `test`, and where the catalogue has neither,
            three tenths of the groups.
        weights: foreign weights, used frozen: what `--init` takes.
        methods: also encoders trained by these methods, with the run's settings but for those of the objective.
        minutes: of each of these trainings; None: as many epochs as the run.
        supervised: also a small network trained on the labels alone.
        shots: labels per class (of other kinds: labelled images) that probes learn from; all of them come last.
        draws: of labels, for each number.
        allow_leak: go on although a group or an equal image lies on both sides.
        device: cpu or cuda.
        console: for progress.

    Raises:
        UserError: no run, no labels, or a split that leaks.
    """
    console = console or Console(stderr=True)
    config = run_config(run)
    own = load_encoder(run, device=device)
    table: dict[str, Any] = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    found = labelled_archive(own, run, archive or config.archive, **table, console=console)
    parts = sides(found, on=on, allow_leak=allow_leak, kind=kind)
    usable, left_out = usable_shots(parts.target, shots)
    notes = [*parts.notes, *seen(run, parts.test), *left_out]
    study = Study(own, config, out, parts, shots=usable, draws=draws, device=device, console=console)
    rows = [
        study.measured(one)
        for one in study.contenders(weights=weights, methods=methods, minutes=minutes, supervised=supervised)
    ]
    result = conclude(rows, parts, notes)
    _publish(out, result, title=f"{run.name} compared")
    shown = figures(result)
    write_back(
        run,
        "compare",
        title=f"{result.target.metric[0].upper()}{result.target.metric[1:]} beside other encoders",
        columns=list(shown[0]),
        # of a path, which tells where this machine keeps its files, the name alone
        rows=[[Path(row["encoder"]).name, *list(row.values())[1:]] for row in shown],
        sentences=[*map(_public, result.sentences), *notes],
        console=console,
    )
    return result


def _public(sentence: str) -> str:
    """Without the folders of a path."""
    return re.sub(r"\S*/(?=\S)", "", sentence)


class Study:
    """What all rows of a comparison have in common, and how each of them is measured."""

    def __init__(
        self,
        own: LoadedEncoder,
        config: PretrainConfig,
        out: Path,
        parts: Sides,
        *,
        shots: Sequence[int],
        draws: int,
        device: str,
        console: Console,
    ) -> None:
        self.own, self.config, self.out, self.parts = own, config, out, parts
        self.shots, self.draws, self.device, self.console = shots, draws, device, console
        self.workers = loader_workers(None, on_gpu=device != "cpu")

    def contenders(
        self, *, weights: Sequence[str], methods: Sequence[str], minutes: float | None, supervised: bool
    ) -> Iterator[Contender]:
        """The rows, one's own first; encoders are made or trained when they are measured."""
        own = self.own
        yield self._embedded(OWN, lambda: own)
        for name in weights:
            path = Path(name).expanduser()
            shown = path.name if [Path(other).name for other in weights].count(path.name) == 1 else name
            settings = _frozen(self.config, str(path.resolve()) if path.exists() else name)
            yield self._trained(f"{shown} (frozen)", settings, [_state(file) for file in _files(path)])
        for name in methods:
            length = {"epochs": None, "minutes": minutes} if minutes else {}
            settings = _changed(self.config, objective={"method": name}, train=length)
            yield self._trained(f"an encoder trained by {name}", settings)
        if supervised:
            yield Contender(SUPERVISED, f"{STEPS} steps", self._labels_alone)
        yield self._embedded(RANDOM, lambda: randomised(own))
        pixels = Thumbnail(own)
        yield self._embedded(
            PIXELS,
            lambda: LoadedEncoder(
                module=pixels,  # type: ignore[arg-type]
                adapter=own.adapter,
                info=own.info,
                name=PIXELS,
                device=own.device,
            ),
        )

    def measured(self, contender: Contender) -> Measured:
        """A row of OUT/rows, measured now unless that was done before on the same images, draws and settings."""
        given = [self.own.fingerprint, self.parts.digest, list(self.shots), self.draws, contender.settings]
        facts, arrays = kept(self.out / "rows", contender.name, given, lambda: _parted(contender.measure()))
        kinds: dict[str, Any] = {
            kind: {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{kind}/")}
            for kind in ("answers", "score")
        }
        return Measured(**kinds, **facts)

    def _embedded(self, name: str, encoder: Callable[[], LoadedEncoder], settings: str = "") -> Contender:
        return Contender(name, settings, lambda: self._probes(name, encoder()))

    def _trained(self, name: str, config: PretrainConfig, files: Sequence[object] = ()) -> Contender:
        """The encoder of a run in OUT/runs, which goes on where it was stopped; other settings are another run."""
        settings = json.dumps([config.model_dump(mode="json", exclude={"out"}), *files], sort_keys=True)
        folder = self.out / "runs" / f"{slug(name)}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

        def encoder() -> LoadedEncoder:
            run = RunFolder(folder)
            if not run.report.is_file():
                begun = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
                wanted = config.model_copy(update={"out": folder})
                if not pretrain(wanted, resume=begun, overwrite=not begun, console=self.console).finished:
                    raise KeyboardInterrupt
            return load_encoder(folder, device=self.device)

        return self._embedded(name, encoder, settings)

    def _probes(self, name: str, encoder: LoadedEncoder) -> Measured:
        """Embed both sides and fit the probes of every draw."""
        learn, test, target = self.parts.learn, self.parts.test, self.parts.target
        began = time.perf_counter()
        x, y = vectors_of(encoder, (learn, test), name=name, workers=self.workers, console=self.console)
        milliseconds = 1000 * (time.perf_counter() - began) / (len(x) + len(y))
        with progress_bar(self.console, f"{name}: probes") as bar:
            task = bar.add_task("", total=self.draws * len(self.shots) + 1)
            results = learn_few(
                target,
                x,
                learn.column("group"),
                y,
                shots=(*self.shots, None),
                draws=self.draws,
                progress=lambda done: bar.update(task, completed=done),
            )
        return Measured(
            name=name,
            answers={str(one.shots or ALL): one.answers[LINEAR] for one in results},
            score={str(one.shots or ALL): np.array(one.linear) for one in results},
            knn=results[-1].knn_mean,
            dim=x.shape[1],
            milliseconds=milliseconds,
        )

    def _labels_alone(self) -> Measured:
        """Train a small network on the labels of each draw, and ask all of them about the scored images."""
        learn, adapter, target = self.parts.learn, self.own.adapter, self.parts.target
        draws = range(min(self.draws, SUPERVISED_DRAWS))
        wanted: list[tuple[int | None, int]]
        wanted = [(k, draw) for k in self.shots if k >= LEAST_SUPERVISED for draw in draws]
        wanted.append((None, 0))
        networks = []
        with progress_bar(self.console, "small network: train") as bar:
            task = bar.add_task("", total=STEPS * len(wanted))
            for number, (k, draw) in enumerate(wanted):
                rows = target.drawn(k, seed=0, draw=draw)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(draw)
                    model = network(adapter.spec, target.matrix.shape[1])
                train(
                    model,
                    SMALL,
                    target,
                    adapter,
                    learn,
                    rows,
                    seed=draw,
                    steps=STEPS,
                    workers=self.workers,
                    device=self.device,
                    step_done=lambda share, number=number: bar.update(  # type: ignore[misc]
                        task, completed=int(STEPS * (number + share))
                    ),
                )
                networks.append((model, rows))
        prepared = (adapter.prepare(record) for record in self.parts.test.records())
        found = predict(networks, target, prepared, self.own.formation, device=self.device)
        of = [str(k or ALL) for k, _ in wanted]
        answers = {key: found[[n for n, one in enumerate(of) if one == key]] for key in dict.fromkeys(of)}
        score = {key: np.array([headline(target, one) for one in given]) for key, given in answers.items()}
        return Measured(name=SUPERVISED, answers=answers, score=score, knn=None, dim=None, milliseconds=None)


def _changed(config: PretrainConfig, **sections: dict[str, Any]) -> PretrainConfig:
    """The settings with others in some sections; an objective replaces the whole one."""
    settings = config.model_dump()
    settings["objective"] = sections.pop("objective", settings["objective"])
    for name, values in sections.items():
        settings[name] |= values
    return PretrainConfig.model_validate(settings)


def _frozen(config: PretrainConfig, weights: str) -> PretrainConfig:
    """A run of no steps from foreign weights, which decide on architecture and normalisation themselves."""
    own = {"init": weights, "backbone": None, "freeze": None, "registers": 0, "conv_stem": False, "code_sha256": None}
    options = {name: value for name, value in config.data.options.items() if name not in ("mean", "std")}
    return _changed(
        config, model=own, data={"options": options}, optim={"lr": None}, train={"epochs": 0, "minutes": None}
    )


def _files(path: Path) -> list[Path]:
    """The weights themselves: a file, or those of a folder; none of a name of the hub."""
    return [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []


def _state(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return file.name, found.st_size, found.st_mtime_ns


def _parted(row: Measured) -> tuple[dict[str, Any], dict[str, Answers]]:
    """A row as facts and arrays, as they are kept."""
    arrays = {f"answers/{key}": value for key, value in row.answers.items()}
    arrays |= {f"score/{key}": value for key, value in row.score.items()}
    return {"name": row.name, "knn": row.knn, "dim": row.dim, "milliseconds": row.milliseconds}, arrays


def conclude(rows: Sequence[Measured], parts: Sides, notes: Sequence[str]) -> Comparison:
    """What the rows say: gains with intervals, and sentences."""
    own, *rivals = rows
    target, groups = parts.target, parts.groups
    scored = len(np.unique(groups))
    gains = {
        rival.name: {
            key: gain(target, own.answers[key][: len(answers)], answers, groups)
            for key, answers in rival.answers.items()
        }
        for rival in rivals
    }
    return Comparison(
        rows=rows,
        gains=gains,
        sentences=[
            sentence(name, found, of=target)
            if scored >= FEW_GROUPS
            else f"Your encoder and {name} cannot be ranked: {count(scored, 'scored group')} "
            f"prove{'s' if scored == 1 else ''} nothing."
            for name, found in gains.items()
        ],
        notes=notes,
        target=target,
    )


def gain(target: Target, own: Answers, rival: Answers, groups: NDArray[np.int64]) -> Gain:
    """Points of the headline score that `own` is above `rival`, answers (draws, n, ...) about n images of groups (n,).

    The interval is a percentile bootstrap over both things that are chance: which labels were drawn, and which groups
    (patients, slides, fields) are scored. Both rows see the same of each.
    """
    of = target.statistics[target.metric]
    mine, theirs = of(own), of(rival)

    def by_draw(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return mine(weights) - theirs(weights)

    mean = float(np.nanmean(by_draw(np.ones((1, len(groups))))))
    # of a single group nothing is known
    low, high = draws_interval(by_draw, len(own), groups, seed=0, parts=target.parts) or (-np.inf, np.inf)
    return Gain(100 * mean, 100 * low, 100 * high)


def sentence(name: str, gains: dict[str, Gain], *, of: Target | None = None) -> str:
    """The verdict on one rival: from how many labels on one's own encoder is better, and by how much."""
    per = "" if of is not None and of.kind != "classification" else " per class"
    keys = list(gains)
    better = [key for key in keys if gains[key].verdict > 0]
    worse = [key for key in keys if gains[key].verdict < 0]
    if not better and not worse:
        return f"Your encoder and {name} differ by no more than chance, whatever the number of labels."
    told = []
    for found, word in ((better, "better"), (worse, "worse")):
        if not found:
            continue
        sizes = sorted(round(abs(gains[key].mean)) for key in found)
        by = f"by {_points(sizes[0])}" if sizes[0] == sizes[-1] else f"by {sizes[0]} to {_points(sizes[-1])}"
        told.append(f"{_when(found, keys, per)} your encoder is {word} than {name}, {by}")
    if rest := [key for key in keys if key not in better + worse]:
        told.append(f"{_when(rest, keys, per)} the difference is within chance")
    text = "; ".join(told)
    return text[0].upper() + text[1:] + "."


def _points(value: int) -> str:
    return "less than a point" if value == 0 else count(value, "point")


def _when(found: Sequence[str], keys: Sequence[str], per: str) -> str:
    if len(found) == len(keys):
        return "with every number of labels"
    if len(found) > 1 and found == list(keys[-len(found) :]):
        return f"from {count(int(found[0]), 'label')}{per} on"
    return f"with {listed(found)}{per}" if found != [ALL] else "with all labels"


def figures(result: Comparison) -> list[dict[str, Any]]:
    """The table as one dict a row."""
    keys = list(result.rows[0].score)
    return [
        {
            "encoder": row.name,
            **{_heading(key): float(np.nanmean(row.score[key])) if key in row.score else None for key in keys},
            "20-NN": row.knn,
            "dimensions": row.dim,
            "ms an image": row.milliseconds,
        }
        for row in result.rows
    ]


def _heading(key: str) -> str:
    return f"{key} label{'' if key == '1' else 's'}" if key != ALL else "all labels"


def _publish(out: Path, result: Comparison, *, title: str) -> None:
    table = figures(result)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    write_text(out / "compare.csv", stream.getvalue())
    write_text(
        out / "compare.html",
        render_page(
            "lejepa_med.study",
            "compare.html.j2",
            title=title,
            result=result,
            table=table,
            curves=_curves(result),
            listed=list(result.rows[0].score),
        ),
    )


def _curves(result: Comparison) -> str:
    """SVG: the score by number of labels, with the spread over draws of labels."""

    def at(key: str) -> float:
        return result.target.per_class if key == ALL else float(key)

    series = []
    for row, colour in zip(result.rows, COLOURS * len(result.rows), strict=False):
        spread = [(at(k), v.mean(), v.std(ddof=1) if len(v) > 1 else 0.0) for k, v in row.score.items()]
        series.append(
            Series(
                points=[(x, float(mean)) for x, mean, _ in spread],
                band=[(x, float(mean - std), float(mean + std)) for x, mean, std in spread],
                label=row.name,
                colour=colour,
                dashed=row.name in (RANDOM, PIXELS),
            )
        )
    return plot(series, width=760, height=380, x_label=result.target.unit, y_label=result.target.metric, x_log=True)


def print_comparison(result: Comparison, *, console: Console | None = None) -> None:
    """Print the table, the verdict and the notes."""
    console = console or Console()
    table = Table(title=f"{result.target.metric} by number of {result.target.unit}", title_justify="left")
    found = figures(result)
    for name in found[0]:
        short = name.removesuffix("s").removesuffix(" label")
        table.add_column(short, justify="left" if name == "encoder" else "right")
    for row in found:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console.print(table)
    for text in result.sentences:
        console.print(escape(text), highlight=False, soft_wrap=True)
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.3g}" if name == "ms an image" else f"{value:.3f}"
