"""Recipes: what a run takes for the settings that its user leaves open, by the scale of the machine.

`--recipe` names one. Left out, it is chosen: laptop on a CPU, workstation on one GPU, cluster on several. The choice is
printed and saved, and every value can still be given by itself. docs/training.md has the measurement behind each value,
or says that there is none.
"""

import os
from typing import NamedTuple

from lejepa_med.config import Scale


class Views(NamedTuple):
    """Views of one sample; without a size, the modality's own for small machines (`BaseAdapter.small_size`)."""

    n_global: int
    n_local: int
    global_size: int | None = None


class Recipe(NamedTuple):
    """Values of one scale for images or for volumes.

    Attributes:
        backbone: where neither an architecture nor weights are given.
        batch: samples of a step over all processes.
        slices: random directions of SIGReg in a step.
        cnn: views of a convolutional network.
        vit: views of a transformer.
        freezes_half: whether the lower half of a CNN that starts from the weights of others is not trained.
    """

    backbone: str
    batch: int
    slices: int
    cnn: Views
    vit: Views
    freezes_half: bool = False


SAME_SIZE = Views(4, 0, 128)  # as in the paper's in-domain runs
MULTI_CROP = Views(2, 6, 224)
CUBES = Views(2, 6, 96)  # 3DINO's sizes

# Frozen halves: benchmarks/results/warm-start-trials.md, for one CNN on three sets; transformers were not tried.
# By scale and by dimensions (2, 3). The laptop's small batch: a short run has few steps (one pair of runs, batch and
# lambda changed together: benchmarks/results/galaxies-trials.md). The cluster's batch is the paper's best (Table 1c);
# its larger backbones have not been tried here.
RECIPES: dict[tuple[Scale, int], Recipe] = {
    ("laptop", 2): Recipe("resnet18", 64, 256, Views(4, 0), Views(2, 2), freezes_half=True),
    ("laptop", 3): Recipe("monai:resnet10", 16, 256, Views(4, 0, 48), Views(2, 2, 48)),
    ("workstation", 2): Recipe("vit_small_patch16_224", 256, 1024, SAME_SIZE, MULTI_CROP),
    ("workstation", 3): Recipe("monai:vit_small", 64, 1024, CUBES, CUBES),
    ("cluster", 2): Recipe("vit_base_patch16_224", 512, 1024, SAME_SIZE, MULTI_CROP),
    ("cluster", 3): Recipe("monai:vit", 128, 1024, CUBES, CUBES),
}


def scale_of(device: str) -> Scale:
    """Return the scale where nobody chose one: by the device, 'cpu' or 'cuda', and the processes of the run."""
    if device == "cpu":
        return "laptop"
    return "cluster" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "workstation"
