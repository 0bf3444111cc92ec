"""The method does not change by accident: two runs record the losses that are kept beside this file."""

import json
from pathlib import Path

import pytest

from tests.lejepa_med.objective.reference import FILE, KEYS, measure


def test_losses_are_those_of_the_reference(tmp_path: Path) -> None:
    """To 1e-5 before the first update; to 1e-2 after it, since AdamW's first steps enlarge the rounding of a CPU."""
    expected = json.loads(FILE.read_text())
    found = measure(tmp_path)
    assert found.keys() == expected.keys()
    for name, lines in expected.items():
        assert len(found[name]) == len(lines) == 6
        for step, (got, line) in enumerate(zip(found[name], lines, strict=True)):
            for key in KEYS:
                assert got[key] == pytest.approx(line[key], rel=1e-5 if step == 0 else 1e-2), (name, step, key)
