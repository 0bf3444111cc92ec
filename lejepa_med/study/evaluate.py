"""evaluate: how good an encoder is on labels of one's own, by every usual protocol, from one label to all of them.

The frozen encoder: a linear probe, the articles' linear probe on its last two layers, and 20 nearest neighbours. Where
asked for, the encoder itself is fine-tuned. Each finished part is a file of OUT/parts, so that an evaluation that was
interrupted goes on with the next one.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.metrics import confusion_matrix, roc_curve
from torch import Tensor

from data_adapters.atomic import write_text
from lejepa_med import __version__
from lejepa_med.archive import progress_bar
from lejepa_med.config import OptimConfig
from lejepa_med.cpu import loader_workers
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.folder import LoadedEncoder, encoder_folder, load_encoder
from lejepa_med.page import render_page
from lejepa_med.plot import COLOURS, Series, plot
from lejepa_med.probes.examples import Kind
from lejepa_med.probes.fewshot import LINEAR, MAJORITY, WEIGHTED, learn_few
from lejepa_med.probes.scores import draws_interval
from lejepa_med.probes.target import Answers, ClassTarget, MarkTarget, NumberTarget, Target
from lejepa_med.study.articles import articles_probe
from lejepa_med.study.labelled import (
    ALL,
    SHOTS,
    Sides,
    kept,
    labelled_archive,
    run_config,
    seen,
    sides,
    usable_shots,
    vectors_of,
    write_back,
)
from lejepa_med.study.supervised import MIXUP, SMOOTHING, STEPS, Depth, Tuned, predict, train, tuning

ARTICLES = "articles' linear probe"
NEAREST, SIMILAR = "20-NN", "20-NN, weighted"
TUNED_SHOTS = 50  # labels at which fine-tuning stands beside the frozen probe, and all of them
TUNED_DRAWS = 3
MOST_DOTS = 500
SHORT = 130  # steps of the bar that one network takes: 100 to train, the rest to answer


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the encoder is fine-tuned.

    Attributes:
        depths: "last" blocks, "full", or both; none: not at all.
        blocks: how many blocks of a ViT, or stages of a CNN, "last" trains.
        minutes: of one network at most; it also ends after 1,000 steps.
        rate: peak learning rate of the head and the highest layer.
        layer_decay: factor of the rate from each layer to the one below it.
        smoothing: of labels.
        mixup: parameter of the Beta distribution of shares; 0: none.
    """

    depths: tuple[Depth, ...] = ()
    blocks: int = 2
    minutes: float = 3.0
    rate: float | None = None
    layer_decay: float | None = None
    smoothing: float = SMOOTHING
    mixup: float = MIXUP

    def name(self, depth: Depth) -> str:
        """In tables."""
        return f"fine-tuned, last {self.blocks} blocks" if depth == "last" else "fine-tuned, all layers"

    def optim(self, encoder: Encoder) -> OptimConfig:
        """The optimiser's settings for this encoder."""
        usual = tuning(encoder)
        given = {"lr": self.rate, "layer_decay": self.layer_decay if usual.layer_decay < 1 else None}
        return usual.model_copy(update={key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class Evaluated:
    """One encoder.

    Attributes:
        name: in tables.
        fingerprint: of the encoder.
        target: the labels.
        groups: codes of the scored images' groups, (n,).
        answers: by method, then by number of labels ("all" for all): (draws, n, ...).
        receipt: that no group is on both sides.
        notes: sentences that a reader must know.
        facts: dimension of the vectors, milliseconds an image, seconds of each fine-tuning.
    """

    name: str
    fingerprint: str
    target: Target
    groups: NDArray[np.int64]
    answers: dict[str, dict[str, Answers]]
    receipt: dict[str, Any]
    notes: tuple[str, ...]
    facts: dict[str, Any]
    figures: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    """Method -> number of labels -> score -> mean, std, draws, interval."""


def evaluate(
    encoders: Sequence[Path],
    out: Path,
    *,
    archive: Path | None = None,
    catalog: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    kind: Kind = "classification",
    on: str | None = None,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    tuned: Tuning = Tuning(),
    allow_leak: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> list[Evaluated]:
    """Evaluate encoders, and write OUT/evaluate.html and OUT/evaluate.json.

    Args:
        encoders: run folders, or encoder folders.
        out: folder of the evaluation, continued where it was left.
        archive: folder with the labelled images; None: the run's.
        catalog: with labels, and where known groups and splits; None: the run's.
        group_column: of `catalog`; None: group.
        label_column: of `catalog`; None: label.
        kind: of the labels: classes, numbers (regression), or several an image, written a;b (multilabel).
        on: split to score on, learnt from `train`; None: `val` or else `test`, and where the catalogue has neither,
            three tenths of the groups.
        shots: labels per class (of other kinds: labelled images) that are learnt from; all of them come last.
        draws: of labels, for each number.
        tuned: how the encoder is fine-tuned, if at all.
        allow_leak: go on although a group or an equal image lies on both sides.
        device: cpu or cuda.
        console: for progress.

    Raises:
        UserError: no encoder, no labels, or a split that leaks.
    """
    console = console or Console(stderr=True)
    table: dict[str, Any] = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    names = [load.name for load in map(_Named, encoders)]
    found = []
    for path, name in zip(encoders, names, strict=True):
        encoder = load_encoder(path, device=device)
        run = _run_of(path)
        place = archive or (run_config(run).archive if run is not None else None)
        if place is None:
            raise UserError(
                f"{path} lies in no run folder, so nothing says where its labelled images are.",
                remedy="Give them: --archive FOLDER --catalog labels.csv",
            )
        manifest = labelled_archive(encoder, run or path, place, **table, console=console)
        parts = sides(manifest, on=on, allow_leak=allow_leak, kind=kind)
        notes = [*parts.notes, *(seen(run, parts.test) if run is not None else [])]
        shown = name if names.count(name) == 1 else str(path)
        study = _Evaluation(path, encoder, shown, parts, out=out, draws=draws, device=device, console=console)
        found.append(study.run(shots, tuned, notes))
    publish(out, found)
    for path, one in zip(encoders, found, strict=True):
        keys = list(one.figures[one.target.probe])
        write_back(
            path,
            "evaluate",
            title=f"{capital(one.target.metric)} by number of {one.target.unit}, {receipt_text(one.receipt)}",
            columns=["method", *keys],
            rows=[
                [method, *(spread(by_shots.get(key, {}).get(one.target.metric)) for key in keys)]
                for method, by_shots in one.figures.items()
            ],
            sentences=one.notes,
            console=console,
        )
    return found


class _Named:
    """An encoder folder's name, without its weights."""

    def __init__(self, path: Path) -> None:
        folder = encoder_folder(path).resolve()
        self.name = folder.parent.name if folder.name == "encoder" else folder.name


def _run_of(path: Path) -> Path | None:
    folder = encoder_folder(path)
    return next((one for one in (path, folder.parent) if (one / "config.yaml").is_file()), None)


class _Evaluation:
    """One encoder's parts, each measured unless its file is there."""

    def __init__(
        self,
        path: Path,
        encoder: LoadedEncoder,
        name: str,
        parts: Sides,
        *,
        out: Path,
        draws: int,
        device: str,
        console: Console,
    ) -> None:
        self.path, self.encoder, self.name, self.parts = path, encoder, name, parts
        self.folder, self.draws, self.device, self.console = out / "parts", draws, device, console
        self.workers = loader_workers(None, on_gpu=device != "cpu")
        self.key = [encoder.fingerprint, parts.digest]

    def run(self, shots: Sequence[int], tuned: Tuning, notes: Sequence[str]) -> Evaluated:
        """Measure every method at every number of labels."""
        target, groups = self.parts.target, self.parts.learn.column("group")
        usable, left_out = usable_shots(target, shots)
        wanted: list[int | None] = [*usable, None]
        said = [*notes, *left_out]
        facts, own = self._vectors("vectors", self.encoder)
        two, joined = self._two_layers()
        if not two:
            said.append(f"{self.encoder.module.name} gives its last layer only, so the articles' probe reads that one.")
        answers: dict[str, dict[str, Answers]] = {}
        with progress_bar(self.console, f"{self.name}: probes") as bar:
            task = bar.add_task("", total=2 * (self.draws * len(usable) + 1))
            for k in wanted:
                count = 1 if k is None else self.draws
                settings = [*self.key, k, self.draws]

                def few(k: int | None = k) -> tuple[dict[str, Any], dict[str, Answers]]:
                    (one,) = learn_few(target, own["learn"], groups, own["test"], shots=[k], draws=self.draws)
                    return {"strengths": one.strengths}, one.answers

                def articles(k: int | None = k, count: int = count) -> tuple[dict[str, Any], dict[str, Answers]]:
                    given = [
                        articles_probe(
                            target, joined["learn"], target.drawn(k, seed=0, draw=draw), joined["test"], seed=draw
                        )
                        for draw in range(count)
                    ]
                    return {}, {"answers": np.stack(given)}

                _, one = kept(self.folder, f"{self.name}-probes-{k or ALL}", settings, few)
                bar.advance(task, count)
                _, other = kept(self.folder, f"{self.name}-articles-{k or ALL}", settings, articles)
                bar.advance(task, count)
                methods = {target.probe: one[LINEAR], ARTICLES: other["answers"]}
                methods |= {NEAREST: one[MAJORITY], SIMILAR: one[WEIGHTED]}
                for method, given in methods.items():
                    answers.setdefault(method, {})[str(k or ALL)] = given
        for depth in tuned.depths:
            name = tuned.name(depth)
            answers[name], facts[name] = self._tune(depth, tuned, usable)
        found = Evaluated(
            name=self.name,
            fingerprint=self.encoder.fingerprint,
            target=target,
            groups=self.parts.groups,
            answers=answers,
            receipt=self.parts.receipt(),
            notes=tuple(said),
            facts=facts,
        )
        with progress_bar(self.console, f"{self.name}: intervals") as bar:
            task = bar.add_task("", total=sum(map(len, answers.values())))
            for method, by_shots in answers.items():
                for key, given in by_shots.items():
                    found.figures.setdefault(method, {})[key] = figures(target, given, found.groups)
                    bar.advance(task)
        return found

    def _vectors(self, name: str, encoder: LoadedEncoder) -> tuple[dict[str, Any], Any]:
        """Facts (dim, milliseconds an image) and the vectors of both sides."""

        def embed() -> tuple[dict[str, Any], dict[str, Answers]]:
            both = (self.parts.learn, self.parts.test)
            began = time.perf_counter()
            learn, test = vectors_of(encoder, both, name=self.name, workers=self.workers, console=self.console)
            each = 1000 * (time.perf_counter() - began) / (len(learn) + len(test))
            return {"dim": learn.shape[1], "milliseconds": each}, {"learn": learn, "test": test}

        facts, arrays = kept(self.folder, f"{self.name}-{name}", [encoder.fingerprint, *self.key], embed)
        return facts, arrays

    def _two_layers(self) -> tuple[bool, Any]:
        """Whether the backbone gives its last two layers, and the vectors of one plain pass that joins them."""
        try:
            encoder = load_encoder(self.path, device=self.device, views=1, layers=2)
        except ConfigError:
            encoder = load_encoder(self.path, device=self.device, views=1)
        return encoder.formation.layers == 2, self._vectors("two-layers", encoder)[1]

    def _tune(self, depth: Depth, tuned: Tuning, usable: Sequence[int]) -> tuple[dict[str, Answers], float]:
        """Answers by number of labels, and the mean seconds of a training."""
        target = self.parts.target
        wanted: list[tuple[int | None, int]] = []
        if TUNED_SHOTS in usable:
            wanted += [(TUNED_SHOTS, draw) for draw in range(min(self.draws, TUNED_DRAWS))]
        wanted.append((None, 0))
        found: dict[str, list[Answers]] = {}
        seconds = []
        with progress_bar(self.console, f"{self.name}: {tuned.name(depth)}") as bar:
            task = bar.add_task("", total=SHORT * len(wanted))
            for number, (k, draw) in enumerate(wanted):
                rows = target.drawn(k, seed=0, draw=draw)

                def network(rows: NDArray[np.int64] = rows, draw: int = draw, number: int = number) -> Any:
                    model = load_encoder(self.path, device=self.device).module
                    optim = tuned.optim(model)
                    began = time.perf_counter()
                    trained = train(
                        Tuned(model, target.matrix.shape[1], depth=depth, blocks=tuned.blocks),
                        optim,
                        target,
                        self.encoder.adapter,
                        self.parts.learn,
                        rows,
                        seed=draw,
                        seconds=60 * tuned.minutes,
                        smoothing=tuned.smoothing,
                        mixup=tuned.mixup,
                        workers=self.workers,
                        device=self.device,
                        step_done=lambda share: bar.update(task, completed=int(SHORT * number + 100 * min(share, 1.0))),
                    )
                    spent = time.perf_counter() - began
                    images = self._prepared(
                        lambda share: bar.update(task, completed=int(SHORT * number + 100 + (SHORT - 100) * share))
                    )
                    formation = self.encoder.formation
                    given = predict([(trained, rows)], target, images, formation, device=self.device)
                    return {"seconds": spent}, {"answers": given[0]}

                settings = [*self.key, k, draw, depth, asdict(tuned), STEPS]
                facts, arrays = kept(self.folder, f"{self.name}-{depth}-{k or ALL}-{draw}", settings, network)
                found.setdefault(str(k or ALL), []).append(arrays["answers"])
                seconds.append(facts["seconds"])
                bar.update(task, completed=SHORT * (number + 1))
        return {key: np.stack(given) for key, given in found.items()}, float(np.mean(seconds))

    def _prepared(self, step: Callable[[float], None]) -> Iterator[Tensor]:
        """The scored images, one after the other; `step` is told the share that is done."""
        records = self.parts.test.records()
        for number, record in enumerate(records, 1):
            yield self.encoder.adapter.prepare(record)
            step(number / len(records))


def figures(target: Target, answers: Answers, groups: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Each score of answers (draws, n, ...): mean and spread over draws, and where it has one its 95 % interval."""
    each = [target.scores(one) for one in answers]
    found = {}
    for name in each[0]:
        values = [one[name] for one in each]
        known = [value for value in values if value is not None]
        of = target.statistics.get(name)
        parts = target.parts if name == target.metric else max(2, len(target.names))
        interval = None if of is None else draws_interval(of(answers), len(answers), groups, seed=0, parts=parts)
        found[name] = {
            "mean": float(np.mean(known)) if known else None,
            "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
            "interval": interval,
            "draws": values,
        }
    return found


def detail(one: Evaluated) -> dict[str, Any]:
    """What the linear probe does with all labels, beyond scores, as JSON: errors by class, calibration, ROC."""
    target, answers = one.target, one.answers[one.target.probe][ALL][0]
    if isinstance(target, NumberTarget):
        rows = np.linspace(0, len(answers) - 1, min(len(answers), MOST_DOTS)).round().astype(int)
        return {"truth": target.truth[rows].tolist(), "predicted": answers[rows].tolist()}
    if isinstance(target, MarkTarget):
        return {"calibration": target.calibration(answers)}
    assert isinstance(target, ClassTarget)
    found: dict[str, Any] = {
        "classes": list(target.names),
        "confusion_matrix": confusion_matrix(target.truth, answers.argmax(1), labels=range(len(target.names))).tolist(),
        "calibration": target.calibration(answers),
    }
    if len(target.names) == 2 and len(set(target.truth.tolist())) == 2:
        wrong, right, _ = roc_curve(target.truth == 1, answers[:, 1])
        found["roc"] = {"positive": target.names[1], "false": wrong.tolist(), "true": right.tolist()}
    return found


def document(found: Sequence[Evaluated]) -> dict[str, Any]:
    """Every number as JSON; no path, name or id of an image."""
    first = found[0].target
    return {
        "version": __version__,
        "kind": first.kind,
        "metric": first.metric,
        "unit": first.unit,
        "chance": first.chance,
        "encoders": [
            {
                "name": one.name,
                "fingerprint": one.fingerprint,
                "receipt": one.receipt,
                "notes": list(one.notes),
                "vectors": {key: one.facts[key] for key in ("dim", "milliseconds")},
                "fine_tuning_seconds": {key: v for key, v in one.facts.items() if key.startswith("fine-tuned")},
                "scores": one.figures,
                "all_labels": detail(one),
            }
            for one in found
        ],
    }


def publish(out: Path, found: Sequence[Evaluated]) -> None:
    """Write evaluate.json and evaluate.html."""
    given = document(found)
    write_text(out / "evaluate.json", json.dumps(given, indent=1) + "\n")
    pages = [
        {
            "one": one,
            "curves": _curves({name: by_shots for name, by_shots in one.figures.items()}, one.target),
            "detail": entry["all_labels"],
            "reliability": _reliability(entry["all_labels"]),
            "roc": _roc(entry["all_labels"]),
            "dots": _dots(entry["all_labels"]),
        }
        for one, entry in zip(found, given["encoders"], strict=True)
    ]
    together = {one.name: one.figures[one.target.probe] for one in found} if len(found) > 1 else {}
    write_text(
        out / "evaluate.html",
        render_page(
            "lejepa_med.study",
            "evaluate.html.j2",
            filters={"spread": spread, "between": between, "capital": capital, "receipt": receipt_text},
            title=f"{', '.join(one.name for one in found)} evaluated",
            pages=pages,
            together=_curves(together, found[0].target) if together else "",
            target=found[0].target,
        ),
    )


def receipt_text(receipt: dict[str, Any]) -> str:
    """What was learnt from and scored, as a phrase."""
    return (
        f"{receipt['learn']:,} images of {receipt['learn_groups']:,} groups to learn from, {receipt['test']:,} of "
        f"{receipt['test_groups']:,} groups scored, {receipt['shared_groups']:,} groups on both sides"
    )


def capital(text: str) -> str:
    """With a capital letter first, the others as they are."""
    return text[:1].upper() + text[1:]


def spread(value: dict[str, Any] | None) -> str:
    """'0.812 ± 0.012': mean and standard deviation over draws."""
    if value is None or value["mean"] is None:
        return "–"
    return f"{value['mean']:.3f}" + (f" ± {value['std']:.3f}" if value["std"] is not None else "")


def between(value: dict[str, Any] | None) -> str:
    """'0.812 (0.790 to 0.833)': mean and interval."""
    if value is None or value["mean"] is None:
        return "–"
    interval = value["interval"]
    return f"{value['mean']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _curves(by_name: dict[str, dict[str, Any]], target: Target) -> str:
    """SVG: the headline score by number of labels, with the spread over draws."""
    low = float("-inf") if target.kind == "regression" else 0.0
    series = []
    for (name, by_shots), colour in zip(by_name.items(), COLOURS * len(by_name), strict=False):
        spots = [
            (target.per_class if key == ALL else float(key), scores[target.metric]) for key, scores in by_shots.items()
        ]
        known = [(x, one["mean"], one["std"] or 0.0) for x, one in spots if one["mean"] is not None]
        series.append(
            Series(
                points=[(x, mean) for x, mean, _ in known],
                band=[(x, max(mean - std, low), min(mean + std, 1.0)) for x, mean, std in known],
                label=name,
                colour=colour,
                dashed=name in (NEAREST, SIMILAR),
            )
        )
    return plot(series, width=760, height=380, x_label=target.unit, y_label=target.metric, x_log=True)


def _reliability(found: dict[str, Any]) -> str:
    """SVG: how often an answer is right by how sure it is; the diagonal is perfect."""
    if "calibration" not in found:
        return ""
    points = [(one["confidence"], one["right"]) for one in found["calibration"]["bins"]]
    diagonal = Series(points=[(0.0, 0.0), (1.0, 1.0)], label="perfect", colour=COLOURS[5], dashed=True)
    titles = [f"{one['count']:,} answers" for one in found["calibration"]["bins"]]
    probe = [
        Series(points=points, label="linear probe", colour=COLOURS[0]),
        Series(points=points, colour=COLOURS[0], dots=True, titles=titles),
    ]
    return plot([diagonal, *probe], height=300, x_label="stated probability", y_label="share that is right")


def _roc(found: dict[str, Any]) -> str:
    """SVG: the ROC curve of two classes."""
    if "roc" not in found:
        return ""
    points = list(zip(found["roc"]["false"], found["roc"]["true"], strict=True))
    chance = Series(points=[(0.0, 0.0), (1.0, 1.0)], label="chance", colour=COLOURS[5], dashed=True)
    curve = Series(points=points, label=f"'{found['roc']['positive']}'", colour=COLOURS[0])
    return plot([chance, curve], height=300, x_label="false positive rate", y_label="true positive rate")


def _dots(found: dict[str, Any]) -> str:
    """SVG: predicted against true numbers."""
    if "predicted" not in found:
        return ""
    ends = [min(found["truth"]), max(found["truth"])]
    equal = Series(points=[(end, end) for end in ends], label="equal", colour=COLOURS[5], dashed=True)
    dots = Series(points=list(zip(found["truth"], found["predicted"], strict=True)), dots=True)
    return plot([equal, dots], height=300, x_label="true", y_label="predicted")


def print_evaluation(found: Sequence[Evaluated], *, console: Console | None = None) -> None:
    """Print the tables and notes of each encoder."""
    console = console or Console()
    for one in found:
        target = one.target
        keys = list(one.figures[target.probe])
        table = Table(title=f"{escape(one.name)}: {target.metric} by number of {target.unit}", title_justify="left")
        table.add_column("method")
        for key in keys:
            table.add_column(key, justify="right")
        for method, by_shots in one.figures.items():
            scores = [by_shots.get(key, {}).get(target.metric) for key in keys]
            table.add_row(method, *(spread(score) for score in scores))
        console.print(table)
        rest = Table(title="all labels, with the 95 % interval over groups", title_justify="left")
        rest.add_column("method")
        names = list(one.figures[target.probe][ALL])
        for name in names:
            rest.add_column(name, justify="right")
        for method, by_shots in one.figures.items():
            cells = (between if name == target.metric else spread for name in names)
            rest.add_row(method, *(cell(by_shots[ALL].get(name)) for cell, name in zip(cells, names, strict=True)))
        console.print(rest)
        text = f"receipt: {receipt_text(one.receipt)}, {one.receipt['sha256'][:12]}"
        console.print(text, highlight=False, soft_wrap=True)
        for note in one.notes:
            console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
