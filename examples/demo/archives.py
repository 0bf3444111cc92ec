"""The demo's archives: `python -m examples.demo.archives galaxy --out demo-data/galaxy/archive`.

Everything is drawn from a seed, so the same command makes the same pixels. labels.csv is for the probe only;
pretraining reads the images of the train split and never a label.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_adapters.errors import UserError
from examples.demo import galaxies, heads, slides
from examples.demo.common import LABELS, SLIDES
from examples.demo.common import Progress as Tell

MAKERS: dict[str, Callable[..., Path]] = {"galaxy": galaxies.make, "histology": slides.make, "mri": heads.make}
WHAT = {
    "galaxy": "galaxy cut-outs in g, r, z (FITS)",
    "histology": "H&E-like slides at 0.5 um per pixel (pyramidal TIFF) and labelled tiles",
    "mri": "subjects with a T1w and a T2w head phantom each (NIfTI, 2 mm)",
}


@dataclass(frozen=True)
class Archive:
    """Where an archive's parts lie: what is pretrained on, and what is embedded and labelled."""

    images: Path
    catalog: Path
    probe_images: Path
    labels: Path

    @classmethod
    def at(cls, folder: Path, modality: str) -> "Archive":
        """The parts of a made archive. Slides are pretrained on whole; labels belong to tiles cut from them."""
        if modality == "histology":
            return cls(folder / "slides", folder / SLIDES, folder / "tiles", folder / LABELS)
        return cls(folder, folder / LABELS, folder, folder / LABELS)

    @property
    def complete(self) -> bool:
        """Whether the archive was made to its end: its table of labels is written last."""
        return self.labels.is_file()


def make(modality: str, folder: Path, *, n: int | None = None, seed: int = 0, tell: Tell | None = None) -> Archive:
    """Make the archive of a modality in `folder`; remains of an unfinished one are removed first.

    Raises:
        UserError: no such made archive, or `folder` holds something that this function did not make.
    """
    if modality not in MAKERS:
        raise UserError(
            f"The demo has no made archive for the modality '{modality}'.",
            remedy=f"Use one of {', '.join(MAKERS)}, or give your own images: make demo ARCHIVE=/your/images "
            f"MODALITY={modality}",
        )
    mark = folder / "made-by-demo.txt"
    if folder.is_dir() and any(folder.iterdir()):
        if not mark.is_file():
            raise UserError(
                f"{folder} is not empty and was not made by the demo.", remedy="Give another folder with --out."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("This folder may be emptied by the demo.\n", encoding="utf-8")
    MAKERS[modality](folder, seed=seed, progress=tell, **({} if n is None else {"n": n}))
    return Archive.at(folder, modality)


def make_with_progress(
    modality: str, folder: Path, *, n: int | None = None, seed: int = 0, console: Console
) -> Archive:
    """`make` with a progress bar on `console`."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("drawing", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return make(modality, folder, n=n, seed=seed, tell=tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.archives", description=__doc__)
    parser.add_argument("modality", choices=sorted(MAKERS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the archive")
    parser.add_argument("--n", type=int, help="galaxies, slides or subjects")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    console = Console()
    try:
        archive = make_with_progress(given.modality, given.out, n=given.n, seed=given.seed, console=console)
    except UserError as error:
        console.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    text = f"Made {WHAT[given.modality]} in {given.out}; labels in {archive.labels}."
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
