"""The page of benchmarks/methods: means over seeds, and gains on equal seeds and draws."""

from typing import Any

from benchmarks.methods import page


def cell(method: str, seed: int, *, ten: list[float], all_labels: float, knn: float | None = 0.5) -> dict[str, Any]:
    return {
        **{"set": "galaxies", "start": "scratch", "method": method, "seed": seed, "minutes": 10.0, "split": "val"},
        **{"date": "2026-12-01", "hardware": "a CPU", "torch": "2", "encoder": {"backbone": "resnet18"}},
        "scores": {"linear": {"10": ten, "50": ten, "all": [all_labels]}, "knn": knn},
    }


def test_gains_are_over_equal_seeds_and_draws() -> None:
    found = [
        cell("lejepa", 0, ten=[0.50, 0.60], all_labels=0.8),
        cell("lejepa", 1, ten=[0.52, 0.62], all_labels=0.8),
        cell("dino", 0, ten=[0.40, 0.50], all_labels=0.7),
        cell("dino", 2, ten=[0.90, 0.90], all_labels=0.9),
        cell("supervised", 1, ten=[0.60], all_labels=0.75, knn=None),
    ]
    lines = {line.split(" | ")[0]: line for line in page(found).splitlines() if line.startswith("| ")}
    assert lines["| lejepa"].startswith("| lejepa | 2 | 0.560 ± 0.014 | 0.560 ± 0.014 | 0.800 ± 0.000 | 0.500")
    # seed 2 of DINO has no equal seed of ours; supervised training saw the draw of its seed alone
    assert lines["| dino"].endswith("| +10.0 | +10.0 | +10.0 |")
    assert lines["| supervised"].endswith("| 0.750 |  | +2.0 | +2.0 | +5.0 |")
    assert "resnet18 from scratch, 10 minutes, scored on val" in page(found)
