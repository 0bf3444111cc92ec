"""The walks of docs/ from raw files to a probe run as they are printed, and end in tables of the user's own files."""

import csv
from pathlib import Path

import pytest

from tests.pages.printed import DOCS, commands, run

# What is printed for a reader with an hour, shortened: fewer files and a few steps.
SHORT = {
    r"--minutes \d+": "--epochs 1 --batch-size 8 --views.n-local 0 --backbone resnet10t "
    "--views.global-size 48 --monitor.sample 16",
    r"archives galaxy --out (\S+) --n \d+": r"archives galaxy --out \1 --n 80",
    r"archives mri --out (\S+) --n \d+": r"archives mri --out \1 --n 12",
    r"archives histology --out (\S+) --n \d+": r"archives histology --out \1 --n 4",
}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.pages
@pytest.mark.parametrize(
    ("page", "archive", "truth"),
    [
        ("walk-mri.md", "heads", {"age.csv": "age", "sex.csv": "sex"}),
        ("walk-histology.md", "tissue", {"tissue.csv": "label", "tissue-rest.csv": "label"}),
        ("walk-galaxies.md", "sky", {"types.csv": "label", "types-rest.csv": "label"}),
    ],
)
def test_a_walk_runs_as_printed(page: str, archive: str, truth: dict[str, str], tmp_path: Path) -> None:
    run(commands(DOCS / page), tmp_path, shorter=SHORT)
    own = {row["path"].removeprefix("tiles/"): row for row in rows(tmp_path / archive / "labels.csv")}
    for name, column in truth.items():
        joined = rows(tmp_path / name)
        paths = [row["path"] for row in joined]
        # all of them, or those that no probe learnt from
        assert set(paths) in (set(own), {path for path in own if own[path]["split"] == "val"})
        assert len(set(paths)) == len(paths)
        for row in joined:
            assert row["truth"] == own[row["path"]][column] and row["predicted"]
            assert row.get("objid") in (None, own[row["path"]].get("objid"))


@pytest.mark.pages
def test_the_numbers_of_the_concepts_are_what_its_code_prints(tmp_path: Path) -> None:
    page = DOCS / "concepts.md"
    shown = run(commands(page), tmp_path)
    assert "[[ 2.67 13.33]\n [13.33 66.67]]" in shown and "effective rank 1.00 of 2 directions" in shown
    heads = ("normal", "two", "all", "collapsed")
    values = [line.partition(": ")[2] for line in shown.splitlines() if line.startswith(heads)]
    *first, last = values
    assert f"It prints {', '.join(first)} and {last}." in page.read_text(encoding="utf-8")
