"""compare: the encoder of a run beside what a lab could use instead, on the lab's own labels, with a verdict in words.

All rows see the same images with the same preprocessing, form their vectors alike, and learn from the same draws of
labels. OUT/rows/NAME.npz is written when a row is done, so a comparison that was interrupted goes on with the next one.
"""

import csv
import hashlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from data_adapters.atomic import new_file, write_text
from data_adapters.manifest import Manifest
from data_adapters.tables import count
from lejepa_med.archive import leak_text, progress_bar, run_catalog, scan
from lejepa_med.config import LOCAL, PretrainConfig, load_config
from lejepa_med.cpu import loader_workers
from lejepa_med.data.split import assign
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.models.embed import embed_records
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised
from lejepa_med.page import render_page
from lejepa_med.plot import COLOURS, Series, plot
from lejepa_med.probes.fewshot import drawn, fewshot
from lejepa_med.probes.scores import cluster_interval
from lejepa_med.study.supervised import STEPS, predict, train
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.loop import pretrain

SHOTS = (1, 2, 5, 10, 50, 100)
PARTS = {"train": 0.7, "test": 0.3}  # of the groups, where nothing says what to learn from and what to score on
FEW_GROUPS = 10  # in the scored part, below which an interval over groups says little
OWN, RANDOM, PIXELS = "your encoder", "random weights", "8 x 8 pixels"
SUPERVISED = "a small network trained on the labels alone"
LEAST_SUPERVISED, SUPERVISED_DRAWS = 10, 3  # labels per class from which it is trained, and of how many draws
ALL = "all"


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
class Sides:
    """The labelled images: what probes learn from, and what they are scored on."""

    learn: Manifest
    test: Manifest
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of ids, labels and sides."""
        parts = [(part.column("id"), part.column("label")) for part in (self.learn, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Measured:
    """A contender's answers.

    Attributes:
        name: in tables.
        hits: by number of labels per class ("all" for all): whether the probe was right, (draws, test items).
        accuracy: likewise: balanced accuracy of each draw, (draws,).
        knn: balanced accuracy of 20-NN with all labels.
        dim: length of a vector.
        milliseconds: to embed an image on this machine, reading included.

    The last three are None of a row without vectors, and its numbers of labels and draws may be fewer.
    """

    name: str
    hits: dict[str, NDArray[np.bool_]]
    accuracy: dict[str, NDArray[np.float64]]
    knn: float | None
    dim: int | None
    milliseconds: float | None


@dataclass(frozen=True)
class Gain:
    """Points of balanced accuracy that one's own encoder is above a rival, with the 95 % interval."""

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
    per_class: float
    """Mean number of labels of a class where all are used, the place of "all" on an axis."""


def compare(
    run: Path,
    out: Path,
    *,
    archive: Path | None = None,
    catalog: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
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
        on: split to score on, learnt from `train`; None: `val` or else `test`, and where the catalogue has neither,
            three tenths of the groups.
        weights: foreign weights, used frozen: what `--init` takes.
        methods: also encoders trained by these methods, with the run's settings but for those of the objective.
        minutes: of each of these trainings; None: as many epochs as the run.
        supervised: also a small network trained on the labels alone.
        shots: labels per class that probes learn from; all of them come last.
        draws: of labels, for each number.
        allow_leak: go on although a group or an equal image lies on both sides.
        device: cpu or cuda.
        console: for progress.

    Raises:
        UserError: no run, no labels, or a split that leaks.
    """
    console = console or Console(stderr=True)
    config = _config(run)
    own = load_encoder(run, device=device)
    table: dict[str, Any] = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    archive = archive or config.archive
    if catalog is None:
        table = {**run_catalog(run, archive), **{k: v for k, v in table.items() if v is not None}}
    found = scan(own.adapter, archive, **table, verify=False, of_encoder=True, console=console).manifest
    parts = sides(found, on=on, allow_leak=allow_leak)
    usable = [k for k in sorted(set(shots)) if k < min(Counter(parts.learn.column("label")).values())]
    notes = [*parts.notes, *_seen(run, parts.test)]
    if skipped := sorted(set(shots) - set(usable)):
        notes.append(f"The rarest class has too few images to learn from {_listed(skipped)} a class.")
    study = Study(own, config, out, parts, shots=usable, draws=draws, device=device, console=console)
    rows = [
        study.measured(one)
        for one in study.contenders(weights=weights, methods=methods, minutes=minutes, supervised=supervised)
    ]
    result = conclude(rows, parts, notes)
    _publish(out, result, title=f"{run.name} compared")
    return result


def _config(run: Path) -> PretrainConfig:
    if not (run / "config.yaml").is_file() or not (run / LOCAL).is_file():
        raise ConfigError(
            f"{run} is no run folder with its config.yaml and {LOCAL}.",
            remedy="Give the folder that `lejepa-med pretrain --out` wrote, on the machine that wrote it.",
        )
    return load_config(run / "config.yaml")


def sides(manifest: Manifest, *, on: str | None, allow_leak: bool) -> Sides:
    """The labelled images to learn from and to score on, no group on both sides.

    Raises:
        UserError: fewer than two labels, a split that is not there, or one that leaks and is not allowed.
    """
    labelled = manifest.select([row for row, label in enumerate(manifest.column("label")) if label])
    classes = set(labelled.column("label"))
    if len(classes) < 2:
        raise UserError(
            f"The images have {len(classes)} different labels, so nothing can be compared.",
            remedy="Give a catalogue with a column 'label' of two classes or more: --catalog labels.csv, or "
            "--label-column for a column with another name.",
        )
    splits = set(labelled.column("split")) - {"", None}
    notes = []
    if on is None and not splits:
        sides_of, _ = assign(
            labelled.column("group"), labelled.column("label"), labelled.column("digest"), fractions=PARTS, seed=0
        )
        at = np.array(sides_of)
        learn, test = (labelled.select(np.flatnonzero(at == side).tolist()) for side in PARTS)
        notes.append(
            f"The catalogue names no splits, so {len(test):,} images of {len(set(test.column('group'))):,} groups, "
            "chosen at random, are scored, and no probe learns from their groups."
        )
    else:
        on = on or next((name for name in ("val", "test") if name in splits), None)
        if on is None or not {"train", on} <= splits:
            raise UserError(
                f"The labelled images have the splits {', '.join(sorted(map(str, splits))) or '(none)'}, and probes "
                f"learn from 'train' and are scored on '{on or 'val'}'.",
                remedy="Name the split to score on with --on, or make splits with: lejepa-med split",
            )
        if leak := labelled.leak(of=on):
            leak.check(allow=allow_leak, flag="--allow-leak")
            notes.append(leak_text(leak))
        learn, test = labelled.of_split("train"), labelled.of_split(on)
        notes.append(f"Probes learn from the split train and are scored on {on}, {len(test):,} images.")
    groups = len(set(test.column("group")))
    if groups < FEW_GROUPS:
        notes.append(
            f"Only {count(groups, 'group', 'is')} scored (patients, slides, fields): so few prove nothing, whatever "
            "the intervals say."
        )
    if groups == len(test):
        notes.append("Each scored image is a group of its own, so intervals are over images.")
    return Sides(learn, test, tuple(notes))


def _seen(run: Path, test: Manifest) -> list[str]:
    """Whether the run has seen scored images, which it may: without their labels."""
    file = RunFolder(run).manifest
    both = len(set(Manifest.read(file).column("id")) & set(test.column("id"))) if file.is_file() else 0
    if not both:
        return []
    return [
        f"The run was pretrained on {both:,} of the {len(test):,} scored images, without their labels; foreign weights "
        "have not seen them. Pretrain with --split train to compare on images that are new to both."
    ]


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
        key = hashlib.sha256(json.dumps(given).encode()).hexdigest()[:12]
        file = self.out / "rows" / f"{_slug(contender.name)}-{key}.npz"
        if not file.is_file():
            _write(file, contender.measure())
        return _read(file)

    def _embedded(self, name: str, encoder: Callable[[], LoadedEncoder], settings: str = "") -> Contender:
        return Contender(name, settings, lambda: self._probes(name, encoder()))

    def _trained(self, name: str, config: PretrainConfig, files: Sequence[object] = ()) -> Contender:
        """The encoder of a run in OUT/runs, which goes on where it was stopped; other settings are another run."""
        settings = json.dumps([config.model_dump(mode="json", exclude={"out"}), *files], sort_keys=True)
        folder = self.out / "runs" / f"{_slug(name)}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

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
        learn, test = self.parts.learn, self.parts.test
        began = time.perf_counter()
        with progress_bar(self.console, f"{name}: embed") as bar:
            task = bar.add_task("", total=len(learn) + len(test))
            x, y = (self._vectors(encoder, part, lambda: bar.advance(task)) for part in (learn, test))
        milliseconds = 1000 * (time.perf_counter() - began) / (len(x) + len(y))
        with progress_bar(self.console, f"{name}: probes") as bar:
            task = bar.add_task("", total=self.draws * len(self.shots) + 1)
            results = fewshot(
                x,
                learn.column("label"),
                learn.column("group"),
                y,
                test.column("label"),
                shots=(*self.shots, None),
                draws=self.draws,
                progress=lambda done: bar.update(task, completed=done),
            )
        return Measured(
            name=name,
            hits={str(one.shots or ALL): one.hits for one in results},
            accuracy={str(one.shots or ALL): np.array(one.linear) for one in results},
            knn=results[-1].knn_mean,
            dim=x.shape[1],
            milliseconds=milliseconds,
        )

    def _vectors(self, encoder: LoadedEncoder, part: Manifest, step: Callable[[], None]) -> NDArray[np.float32]:
        """(n, dim); an image that cannot be read ends the comparison, since every row must see the same ones."""
        vectors = []
        for feature in embed_records(encoder, part.records(), workers=self.workers):
            if feature.vector is None:
                raise UserError(
                    f"{part.record(feature.index).uri} cannot be read: {feature.error}.",
                    remedy="Take it out of the catalogue, or repair it.",
                )
            vectors.append(feature.vector)
            step()
        return np.stack(vectors)

    def _labels_alone(self) -> Measured:
        """Train a small network on the labels of each draw, and ask all of them about the scored images."""
        learn, test, adapter = self.parts.learn, self.parts.test, self.own.adapter
        names, codes = np.unique(learn.column("label"), return_inverse=True)
        truth = np.searchsorted(names, test.column("label"))
        members = [np.flatnonzero(codes == k) for k in range(len(names))]
        wanted: list[tuple[int | None, int]]
        draws = range(min(self.draws, SUPERVISED_DRAWS))
        wanted = [(k, draw) for k in self.shots if k >= LEAST_SUPERVISED for draw in draws]
        wanted.append((None, 0))
        networks = []
        with progress_bar(self.console, "small network: train") as bar:
            task = bar.add_task("", total=STEPS * len(wanted))
            for k, draw in wanted:
                networks.append(
                    train(
                        adapter,
                        learn,
                        drawn(members, k, seed=0, draw=draw),
                        codes,
                        seed=draw,
                        steps=STEPS,
                        workers=self.workers,
                        device=self.device,
                        step_done=lambda: bar.advance(task),
                    )
                )
        prepared = (adapter.prepare(record) for record in test.records())
        right = predict(networks, prepared, self.own.formation, device=self.device) == truth
        of = [str(k or ALL) for k, _ in wanted]
        hits = {key: right[[n for n, one in enumerate(of) if one == key]] for key in dict.fromkeys(of)}
        accuracy = {
            key: np.mean([found[:, truth == c].mean(1) for c in np.unique(truth)], axis=0)
            for key, found in hits.items()
        }
        return Measured(name=SUPERVISED, hits=hits, accuracy=accuracy, knn=None, dim=None, milliseconds=None)


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


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _files(path: Path) -> list[Path]:
    """The weights themselves: a file, or those of a folder; none of a name of the hub."""
    return [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []


def _state(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return file.name, found.st_size, found.st_mtime_ns


def _write(file: Path, row: Measured) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {"name": row.name, "knn": row.knn, "dim": row.dim, "milliseconds": row.milliseconds}
    arrays: dict[str, Any] = {f"hits/{key}": value for key, value in row.hits.items()}
    arrays |= {f"accuracy/{key}": value for key, value in row.accuracy.items()}
    with new_file(file) as draft, draft.open("wb") as stream:
        np.savez_compressed(stream, facts=np.array(json.dumps(facts)), **arrays)


def _read(file: Path) -> Measured:
    with np.load(file, allow_pickle=False) as stored:
        values: dict[str, Any] = {
            kind: {key.partition("/")[2]: stored[key] for key in stored.files if key.startswith(f"{kind}/")}
            for kind in ("hits", "accuracy")
        }
        return Measured(**values, **json.loads(str(stored["facts"])))


def conclude(rows: Sequence[Measured], parts: Sides, notes: Sequence[str]) -> Comparison:
    """What the rows say: gains with intervals, and sentences."""
    own, *rivals = rows
    truth = np.unique(parts.test.column("label"), return_inverse=True)[1]
    groups = np.unique(parts.test.column("group"), return_inverse=True)[1]
    gains = {
        rival.name: {key: gain(own.hits[key][: len(hits)], hits, truth, groups) for key, hits in rival.hits.items()}
        for rival in rivals
    }
    labels = parts.learn.column("label")
    return Comparison(
        rows=rows,
        gains=gains,
        sentences=[sentence(name, found) for name, found in gains.items()],
        notes=notes,
        per_class=len(labels) / len(set(labels)),
    )


def gain(own: NDArray[np.bool_], rival: NDArray[np.bool_], truth: NDArray[np.int64], groups: NDArray[np.int64]) -> Gain:
    """Points of balanced accuracy that `own` is above `rival`, (draws, n) hits on n images of classes and groups.

    The interval is a percentile bootstrap over both things that are chance: which labels were drawn, and which groups
    (patients, slides, fields) are scored. Both rows see the same of each.
    """
    better = own.astype(np.float64) - rival
    members = [np.flatnonzero(truth == c) for c in np.unique(truth)]
    rng = np.random.default_rng(95)

    def by_draw(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the classes, (replicates, draws); NaN where a replicate lacks a class."""
        of_class = []
        for rows in members:
            total = weights[:, rows].sum(1, keepdims=True)
            of_class.append(weights[:, rows] @ better[:, rows].T / np.where(total > 0, total, np.nan))
        return np.asarray(np.mean(of_class, axis=0))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = by_draw(weights)
        times = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=len(values))
        return np.asarray((times * values).mean(1))

    mean = float(by_draw(np.ones((1, len(truth)))).mean())
    low, high = cluster_interval(statistic, groups, seed=0) or (-1.0, 1.0)  # of a single group nothing is known
    return Gain(100 * mean, 100 * low, 100 * high)


def sentence(name: str, gains: dict[str, Gain]) -> str:
    """The verdict on one rival: from how many labels on one's own encoder is better, and by how much."""
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
        told.append(f"{_when(found, keys)} your encoder is {word} than {name}, {by}")
    if rest := [key for key in keys if key not in better + worse]:
        told.append(f"{_when(rest, keys)} the difference is within chance")
    text = "; ".join(told)
    return text[0].upper() + text[1:] + "."


def _points(value: int) -> str:
    return "less than a point" if value == 0 else count(value, "point")


def _when(found: Sequence[str], keys: Sequence[str]) -> str:
    if len(found) == len(keys):
        return "with every number of labels"
    if len(found) > 1 and found == list(keys[-len(found) :]):
        return f"from {count(int(found[0]), 'label')} per class on"
    return f"with {_listed(found)} per class" if found != [ALL] else "with all labels"


def _listed(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
    return f"{joined} label{'' if texts == ['1'] else 's'}"


def figures(result: Comparison) -> list[dict[str, Any]]:
    """The table as one dict a row."""
    keys = list(result.rows[0].hits)
    return [
        {
            "encoder": row.name,
            **{_heading(key): float(row.accuracy[key].mean()) if key in row.accuracy else None for key in keys},
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
            listed=list(result.rows[0].hits),
        ),
    )


def _curves(result: Comparison) -> str:
    """SVG: balanced accuracy by number of labels, with the spread over draws of labels."""

    def at(key: str) -> float:
        return result.per_class if key == ALL else float(key)

    series = []
    for row, colour in zip(result.rows, COLOURS * len(result.rows), strict=False):
        spread = [(at(k), v.mean(), v.std(ddof=1) if len(v) > 1 else 0.0) for k, v in row.accuracy.items()]
        series.append(
            Series(
                points=[(x, float(mean)) for x, mean, _ in spread],
                band=[(x, float(mean - std), float(mean + std)) for x, mean, std in spread],
                label=row.name,
                colour=colour,
                dashed=row.name in (RANDOM, PIXELS),
            )
        )
    return plot(series, width=760, height=380, x_label="labels per class", y_label="balanced accuracy", x_log=True)


def print_comparison(result: Comparison, *, console: Console | None = None) -> None:
    """Print the table, the verdict and the notes."""
    console = console or Console()
    table = Table(title="balanced accuracy by number of labels per class", title_justify="left")
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
