"""The whole path on a CPU: archive, pretraining, embeddings, comparison, a running service, a probe over HTTP.

`make demo` runs this; every finished step is kept, so a second call goes on where the first one stopped.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from examples.demo import archives, service
from examples.demo.archives import Archive
from examples.demo.common import LABELS, read_labels
from examples.demo.probing import explained, items_of, show_next, train_probe
from lejepa_med.config import load_config
from lejepa_med.models.embed import DONE, about

MARK = ".lejepa-demo"
EXIT_STOPPED = 3  # lejepa-med pretrain: saved and can be resumed
# Labelled tiles are 128 px at .5 um, embedded at 64 px, so the slides are read at the same 1 um per pixel.
OPTIONS = {"histology": {"mpp": 1.0}}
COMPARED = ["--shots", "5,10,50", "--draws", "5"]  # enough for a first answer; the defaults take a minute more


class Stopped(Exception):
    """A step was interrupted by the user; `status` is what the demo exits with."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Place:
    """Where the demo keeps its things: one folder for each archive."""

    home: Path
    modality: str

    @classmethod
    def of(cls, out: Path, modality: str, archive: Path | None) -> "Place":
        """The folder below `out` for a made archive, or for the user's own: two archives never share one."""
        name = _name(modality)
        if archive is None:
            return cls(out / name, modality)
        path = archive.resolve()
        return cls(out / f"{name}-{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", modality)

    def claim(self, *, fresh: bool) -> None:
        """Make the folder, or take it again; with `fresh`, end its service and empty it first.

        Raises:
            UserError: it holds something that no demo made.
        """
        mark = self.home / MARK
        if self.home.exists() and not mark.is_file() and any(self.home.iterdir()):
            raise UserError(
                f"{self.home} is not empty and was not made by the demo.", remedy="Give another folder with --out."
            )
        if fresh and self.home.exists():
            service.stop(self.home)
            shutil.rmtree(self.home)
        self.home.mkdir(parents=True, exist_ok=True)
        mark.touch()

    @property
    def runs(self) -> Path:
        """What is served: the run and its embedding tables."""
        return self.home / "runs"

    @property
    def run(self) -> Path:
        """The pretraining run, which is also the encoder's name in the service."""
        return self.runs / _name(self.modality)

    @property
    def table(self) -> Path:
        """The embedding table."""
        return self.runs / f"{_name(self.modality)}-embedded"

    @property
    def comparison(self) -> Path:
        """What `lejepa-med compare` writes."""
        return self.home / "compared"

    @property
    def manifest(self) -> Path:
        """The manifest of what is embedded: it joins paths to ids."""
        return self.home / "scan" / "manifest.parquet"


class Demo:
    """The steps, in order. Each says what it does, and whether it was done before."""

    def __init__(self, place: Place, *, minutes: float, port: int, console: Console) -> None:
        self.place, self.minutes, self.port, self.console = place, minutes, port, console
        self._number = 0

    def say(self, text: str) -> None:
        """A numbered headline."""
        self._number += 1
        self.console.print(f"\n{self._number}. {text}", style="bold", markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line below a headline."""
        self.console.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)

    def archive(self, given: Path | None) -> Archive:
        """The user's archive, or a made one."""
        if given is not None:
            self.say(f"Your archive: {given}")
            if not given.exists():
                raise UserError(f"The archive {given} does not exist.", remedy="Give the folder that holds the images.")
            labels = (given if given.is_dir() else given.parent) / LABELS
            self.note(
                "found labels.csv beside the images" if labels.is_file() else "no labels.csv, so no probe is trained"
            )
            return Archive(given, labels, given, labels)
        self.say(f"Make an archive: {archives.WHAT.get(self.place.modality, self.place.modality)}")
        folder = self.place.home / "archive"
        made = Archive.at(folder, self.place.modality)
        if made.complete:
            self.note(f"kept from an earlier demo: {folder}")
            return made
        made = archives.make_with_progress(self.place.modality, folder, console=self.console)
        self.note(f"in {folder}; labels for the probe in {made.labels}")
        return made

    def pretrain(self, archive: Archive) -> None:
        """`lejepa-med pretrain`, resumed where it was stopped."""
        self.say(f"Pretrain on it without labels (LeJEPA), about {self.minutes:g} minutes; Ctrl-C pauses")
        run = self.place.run
        if self._finished():
            before = load_config(run / "config.yaml").train.minutes
            self.note(f"kept from an earlier demo: {run}")
            if before is not None and before != self.minutes:
                self.note(f"it was given {before:g} minutes; to pretrain anew, start with --fresh")
            return
        command = ["pretrain", str(archive.images), "--modality", self.place.modality, "--out", str(run)]
        command += ["--minutes", f"{self.minutes:g}"]
        if archive.catalog.is_file():
            command += ["--catalog", str(archive.catalog)]
            if "train" in _splits(archive.catalog):
                command += ["--split", "train"]
                self.note("only on the train split: the validation images stay unseen")
        for name, value in OPTIONS.get(self.place.modality, {}).items():
            command += ["-o", f"{name}={value}"]
        if (run / "checkpoints").is_dir() and any((run / "checkpoints").iterdir()):
            self.note("an earlier demo was stopped here; it goes on from its checkpoint")
            command.append("--resume")
        elif run.exists():
            command.append("--overwrite")  # it ended before its first checkpoint
        self.call(command)
        self.note(f"report with curves and neighbours: {run / 'report.html'}")

    def _finished(self) -> bool:
        try:
            info = json.loads((self.place.run / "encoder" / "lejepa_med.json").read_text(encoding="utf-8"))
            return bool(info["training"]["step"] == info["training"]["steps"])
        except (OSError, ValueError, KeyError):
            return False

    def embed(self, archive: Archive) -> None:
        """`lejepa-med embed`, and anew where the encoder has changed."""
        labelled = archive.labels.is_file()
        self.say("Embed the archive")
        weights = self.place.run / "encoder" / "model.safetensors"
        stamp, digest = self.place.home / "embedded-with", hashlib.sha256(weights.read_bytes()).hexdigest()
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != digest:
            for folder in (self.place.table, self.place.manifest.parent, self.place.comparison):
                shutil.rmtree(folder, ignore_errors=True)
            stamp.write_text(digest, encoding="utf-8")
        if not self.place.manifest.is_file():
            command = ["scan", str(archive.probe_images), "--modality", self.place.modality, "--no-verify"]
            command += ["--out", str(self.place.manifest.parent)]
            self.call(command + (["--catalog", str(archive.labels)] if labelled else []))
        if about(self.place.table, DONE).is_file():
            self.note(f"kept from an earlier demo: {self.place.table}")
        else:
            command = ["embed", str(self.place.run), str(self.place.manifest), "--out", str(self.place.table)]
            self.call([*command, "--thumbnails"])  # the lab page shows them

    def compare(self, archive: Archive) -> None:
        """`lejepa-med compare`: the encoder beside random weights and raw pixels."""
        self.say("Compare it with random weights and with raw pixels, on 5, 10, 50 and all labels per class")
        command = ["compare", str(self.place.run), "--archive", str(archive.probe_images)]
        self.call([*command, "--catalog", str(archive.labels), *COMPARED, "--out", str(self.place.comparison)])

    def serve(self) -> service.Running:
        """Start the service anew; it stays when the demo ends."""
        self.say("Serve the encoder and the embeddings over REST")
        if service.stop(self.place.home):
            self.note("the service of an earlier demo was stopped")
        running = service.start(self.place.home, self.place.runs.resolve(), port=self.port)
        taken = "" if running.port == self.port else f" (port {self.port} belongs to another program)"
        self.note(f"ready at {running.url}{taken}; log in {self.place.home / 'service.log'}")
        return running

    def call(self, command: Sequence[str]) -> None:
        """Run `lejepa-med` on this terminal.

        Raises:
            Stopped: Ctrl-C, or SIGTERM to the command; what it did is saved.
            UserError: it failed; it has printed why and what to do.
        """
        process = subprocess.Popen([sys.executable, "-m", "lejepa_med.cli", *command])
        interrupted = False
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:  # the terminal sent it to the command too, which saves and ends
                interrupted = True
        if status == EXIT_STOPPED or interrupted:
            raise Stopped(130)
        if status != 0:
            raise UserError(
                f"'lejepa-med {command[0]}' ended with status {status}; its message is above.",
                remedy="Mend that and run the demo again (finished steps are kept), or start anew with --fresh.",
            )


def _splits(catalog: Path) -> set[str]:
    return {row.get("split", "") for row in read_labels(catalog)}


def _name(modality: str) -> str:
    """The modality as a folder's name; of a plug-in ./file.py:Class, the file's."""
    return Path(modality.partition(":")[0]).stem


def run(demo: Demo, given: Path | None) -> None:
    """All steps."""
    place = demo.place
    archive = demo.archive(given)
    demo.pretrain(archive)
    demo.embed(archive)
    manifest = Manifest.read(place.manifest)
    labelled = len(set(manifest.column("label")) - {"", None}) >= 2
    if labelled:
        demo.compare(archive)
    running = demo.serve()
    probe = ""
    with service.connect(running) as client, explained():
        embedded = {item.id for item in client.archive_items(place.table.name, page=10_000)} if labelled else set()
        if items := items_of(manifest, embedded=embedded):
            demo.say("Train a probe on a few labels over HTTP")
            probe, quality = train_probe(client, items, place.table.name, console=demo.console)
            demo.note(quality)
    show_next(demo.console, running, home=place.home, manifest=manifest, table=place.table, probe=probe)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.run", description=__doc__)
    parser.add_argument("--archive", type=Path, help="your own images; without it, an archive is made")
    parser.add_argument("--modality", default="galaxy", help="galaxy (default), histology, mri, images, or a plug-in")
    parser.add_argument("--minutes", type=float, default=4.0, help="of pretraining (default 4)")
    parser.add_argument("--out", type=Path, default=Path("demo-data"), help="folder of everything that is written")
    parser.add_argument("--port", type=int, default=8000, help="of the service, or the next free one (default 8000)")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of keeping finished steps")
    given = parser.parse_args(arguments)
    console = Console()
    place = Place.of(given.out, given.modality, given.archive)
    try:
        place.claim(fresh=given.fresh)
        run(Demo(place, minutes=given.minutes, port=given.port, console=console), given.archive)
    except Stopped as stopped:
        console.print("\nPaused. Run the demo again: it goes on from here.")
        return stopped.status
    except UserError as error:
        console.print(f"\nThe demo stopped: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped. Run the demo again: finished steps are kept.")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
