"""Losses of two tiny runs that every later change must reproduce.

python -m tests.lejepa_med.objective.reference  # writes them anew; say in the commit which change of the method did it
"""

import json
import os
import tempfile
from pathlib import Path

from rich.console import Console

from lejepa_med.training.loop import pretrain
from tests.conftest import write_pictures
from tests.lejepa_med.runs import losses, tiny

FILE = Path(__file__).with_name("reference_losses.json")
KEYS = ("loss", "invariance", "sigreg", "gradient_norm", "lr")
RUNS = {
    "resnet10t, 4 views of 32 px": {"views": {"n_global": 4, "global_size": 32}},
    "vit_tiny, 2 views of 32 px and 2 of 16": {
        "model": {"backbone": "vit_tiny_patch16_224"},
        "views": {"n_global": 2, "n_local": 2, "global_size": 32, "local_size": 16},
    },
}


def measure(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Run both, and return what every step recorded."""
    pictures = write_pictures(folder / "pictures", count=48)
    found = {}
    for index, (name, settings) in enumerate(RUNS.items()):
        out = folder / str(index)
        train = {"epochs": 1, "precision": "32-true"}
        pretrain(tiny(pictures, out, train=train, **settings), console=Console(quiet=True))
        found[name] = [{key: line[key] for key in KEYS} for line in losses(out)]
    return found


if __name__ == "__main__":
    os.environ["LEJEPA_SALT"] = "test"
    with tempfile.TemporaryDirectory() as temporary:
        FILE.write_text(json.dumps(measure(Path(temporary)), indent=1) + "\n")
    print(f"wrote {FILE}")
