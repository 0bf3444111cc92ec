"""What `compare` and `evaluate` have in common: labelled images on two sides, their vectors, finished parts."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from data_adapters.atomic import new_file
from data_adapters.manifest import Manifest
from data_adapters.tables import NUMBER, count
from lejepa_med import __version__
from lejepa_med.archive import leak_text, progress_bar, run_catalog, scan
from lejepa_med.config import LOCAL, PretrainConfig, load_config
from lejepa_med.data.split import assign
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.models.embed import embed_records
from lejepa_med.models.folder import LoadedEncoder, encoder_folder, record_results
from lejepa_med.probes.examples import Kind
from lejepa_med.probes.label_table import MOST_GRADES
from lejepa_med.probes.target import MarkTarget, Target, target_of
from lejepa_med.training.folder import RunFolder, read_lines

SHOTS = (1, 2, 5, 10, 50, 100)
PARTS = {"train": 0.7, "test": 0.3}  # of the groups, where nothing says what to learn from and what to score on
FEW_GROUPS = 10  # in the scored part, below which an interval over groups says little
ALL = "all"


@dataclass(frozen=True)
class Sides:
    """The labelled images: what probes learn from, and what they are scored on."""

    learn: Manifest
    test: Manifest
    notes: tuple[str, ...]
    kind: Kind = "classification"
    leak: bool = False
    """A group or an equal image lies on both sides, which was allowed."""

    @property
    def digest(self) -> str:
        """Of ids, labels, groups and sides."""
        parts = [(part.column("id"), part.column("label"), part.column("group")) for part in (self.learn, self.test)]
        return hashlib.sha256(json.dumps([self.kind, *parts]).encode()).hexdigest()[:16]

    @cached_property
    def target(self) -> Target:
        """The labels as probes learn them.

        Raises:
            UserError: they do not fit the kind.
        """
        return target_of(self.kind, self.learn.column("label"), self.test.column("label"))

    @property
    def groups(self) -> NDArray[np.int64]:
        """Codes of the scored images' groups, (n,)."""
        return np.asarray(np.unique(self.test.column("group"), return_inverse=True)[1])

    def receipt(self) -> dict[str, Any]:
        """Sizes of both sides, whether they share no group, and a hash of (group, side), as JSON.

        Raises:
            RuntimeError: a group lies on both sides, and no leak was allowed.
        """
        learn, test = (sorted(set(part.column("group"))) for part in (self.learn, self.test))
        shared = len(set(learn) & set(test))
        if shared and not self.leak:
            raise RuntimeError(f"{shared} groups are on both sides.")
        return {
            "learn": len(self.learn),
            "learn_groups": len(learn),
            "test": len(self.test),
            "test_groups": len(test),
            "shared_groups": shared,
            "groups_disjoint": not shared,
            "sha256": hashlib.sha256(json.dumps([learn, test]).encode()).hexdigest(),
        }


def run_config(run: Path) -> PretrainConfig:
    """The settings of a run on this machine.

    Raises:
        ConfigError: the folder is no run.
    """
    if not (run / "config.yaml").is_file() or not (run / LOCAL).is_file():
        raise ConfigError(
            f"{run} is no run folder with its config.yaml and {LOCAL}.",
            remedy="Give the folder that `lejepa-med pretrain --out` wrote, on the machine that wrote it.",
        )
    return load_config(run / "config.yaml")


def labelled_archive(
    encoder: LoadedEncoder,
    run: Path,
    archive: Path,
    *,
    catalog: Path | None,
    group_column: str | None,
    label_column: str | None,
    console: Console,
) -> Manifest:
    """Scan an archive with the encoder's adapter; without a catalogue, with that of the run that it lies in.

    Raises:
        UserError: nothing can be read.
    """
    table: dict[str, Any] = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    if catalog is None:
        table = {**run_catalog(run, archive), **{k: v for k, v in table.items() if v is not None}}
    return scan(encoder.adapter, archive, **table, verify=False, of_encoder=True, console=console).manifest


def sides(manifest: Manifest, *, on: str | None, allow_leak: bool, kind: Kind = "classification") -> Sides:
    """The labelled images to learn from and to score on, no group on both sides.

    Raises:
        UserError: fewer than two labels, a split that is not there, or one that leaks and is not allowed.
    """
    labelled = manifest.select([row for row, label in enumerate(manifest.column("label")) if label])
    classes = set(labelled.column("label"))
    if len(classes) < 2:
        raise UserError(
            f"The images have {count(len(classes), 'different label')}, so nothing can be learnt or compared.",
            remedy="Give a catalogue with a column 'label' of two classes or more: --catalog labels.csv, or "
            "--label-column for a column with another name.",
        )
    notes, leaks = [], False
    if kind == "classification" and len(classes) > MOST_GRADES and all(NUMBER.fullmatch(name) for name in classes):
        notes.append(
            f"The labels are {len(classes):,} different numbers, each of which is taken as a class. If they are "
            "quantities, give --kind regression."
        )
    splits = set(labelled.column("split")) - {"", None}
    if on is None and not splits:
        named = labelled.column("label") if kind == "classification" else [None] * len(labelled)
        sides_of, _ = assign(labelled.column("group"), named, labelled.column("digest"), fractions=PARTS, seed=0)
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
            leaks = True
            notes.append(leak_text(leak))
        learn, test = labelled.of_split("train"), labelled.of_split(on)
        notes.append(f"Probes learn from the split train and are scored on {on}, {len(test):,} images.")
    groups = len(set(test.column("group")))
    if groups < FEW_GROUPS:
        notes.insert(
            0,
            f"Only {count(groups, 'group', 'is')} scored (patients, slides, fields), of "
            f"{len(set(labelled.column('group'))):,} in all: so few prove nothing, whatever the intervals say.",
        )
    if groups == len(test):
        notes.append("Each scored image is a group of its own, so intervals are over images.")
    found = Sides(learn, test, tuple(notes), kind, leaks)
    if isinstance(found.target, MarkTarget) and found.target.skipped:
        notes.append(f"Not scored, since too few images have or lack it: {', '.join(found.target.skipped)}.")
    return Sides(learn, test, tuple(notes), kind, leaks)


def seen(run: Path, test: Manifest) -> list[str]:
    """Whether the run has seen scored images, which it may: without their labels."""
    file = RunFolder(run).manifest
    both = len(set(Manifest.read(file).column("id")) & set(test.column("id"))) if file.is_file() else 0
    if not both:
        return []
    return [
        f"The run was pretrained on {both:,} of the {len(test):,} scored images, without their labels, which other "
        "weights have not seen. Pretrain with --split train to score images that are new to every encoder."
    ]


def usable_shots(target: Target, shots: Sequence[int]) -> tuple[list[int], list[str]]:
    """The numbers of labels that can be drawn, and a note about the others."""
    usable = target.usable(shots)
    skipped = sorted(set(shots) - set(usable))
    if not skipped:
        return usable, []
    if target.kind == "classification":
        return usable, [f"The rarest class has too few images to learn from {listed(skipped)} a class."]
    return usable, [f"Left out: {listed(skipped)}; there are {len(target.matrix):,} labelled images to draw from."]


def listed(values: Sequence[Any], noun: str = "label") -> str:
    """'1, 2 or 5 labels'."""
    texts = [str(value) for value in values]
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
    return f"{joined} {noun}{'' if texts == ['1'] else 's'}"


def vectors_of(
    encoder: LoadedEncoder, parts: Sequence[Manifest], *, name: str, workers: int, console: Console
) -> list[NDArray[np.float32]]:
    """Vectors of each part, (n, dim), with a progress bar.

    Raises:
        UserError: an image that cannot be read, since every row must see the same ones.
    """
    found = []
    with progress_bar(console, f"{name}: embed") as bar:
        task = bar.add_task("", total=sum(map(len, parts)))
        for part in parts:
            vectors = []
            for feature in embed_records(encoder, part.records(), workers=workers):
                if feature.vector is None:
                    raise UserError(
                        f"{part.record(feature.index).uri} cannot be read: {feature.error}.",
                        remedy="Take it out of the catalogue, or repair it.",
                    )
                vectors.append(feature.vector)
                bar.advance(task)
            found.append(np.stack(vectors))
    return found


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


Arrays = Mapping[str, NDArray[Any]]


def kept(folder: Path, name: str, settings: Sequence[Any], make: Callable[[], tuple[dict[str, Any], Arrays]]) -> Any:
    """Facts (JSON) and arrays of a finished part, made now unless a file of the same settings is there.

    Files are NAME-HASH.npz without pickle, each whole or absent, so that a repeated command goes on where it was
    stopped. Returns (facts, arrays).
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{slug(name)}-{key}.npz"
    if not file.is_file():
        facts, arrays = make()
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(file) as draft, draft.open("wb") as stream:
            np.savez_compressed(stream, facts=np.array(json.dumps(facts)), **dict(arrays))  # type: ignore[arg-type]
    with np.load(file, allow_pickle=False) as stored:
        return json.loads(str(stored["facts"])), {name: stored[name] for name in stored.files if name != "facts"}


def write_back(
    path: Path,
    kind: str,
    *,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    sentences: Sequence[str],
    console: Console,
) -> None:
    """Put a table and sentences into the encoder's model card; a folder that cannot be written is left as it is."""
    results = {
        "title": title,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "version": __version__,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "sentences": list(sentences),
    }
    metrics = RunFolder(encoder_folder(path).resolve().parent).metrics
    try:
        record_results(path, kind, results, history=read_lines(metrics))
    except OSError as error:
        console.print(f"[yellow]note:[/] the model card in {escape(str(path))} was not renewed ({error.strerror}).")
