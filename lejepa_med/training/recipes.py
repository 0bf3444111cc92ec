"""Recipes: what a run takes for the settings that its user leaves open, by the scale of the machine.

`--recipe` names one; left out, it is chosen: laptop on a CPU, workstation on one GPU, cluster on several. The choice is
printed and saved, and every value can still be given by itself. docs/training.md has the measurement behind each value,
or says that there is none.
"""

import os
from dataclasses import dataclass

from lejepa_med.config import Scale


@dataclass(frozen=True)
class Kind:
    """A recipe's values for one kind of data: 2-D images or volumes.

    Attributes:
        backbone: where neither an architecture nor weights are given.
        batch: samples of a step over all processes.
        cnn: views of a convolutional network: n_global, n_local and global_size; without a size, the modality's own
            for small machines (`BaseAdapter.small_size`).
        vit: views of a transformer, likewise.
    """

    backbone: str
    batch: int
    cnn: dict[str, int]
    vit: dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """A scale's values, and the random directions of SIGReg in a step."""

    images: Kind
    volumes: Kind
    slices: int


# Same-size views for a CNN, as in the paper's in-domain runs; multi-crop for a ViT; for volumes 3DINO's sizes. A small
# batch on a CPU, since a short run has few steps (one pair of runs, batch and lambda changed together:
# benchmarks/results/galaxies-trials.md).
RECIPES: dict[Scale, Recipe] = {
    "laptop": Recipe(
        images=Kind("resnet18", 64, {"n_global": 4, "n_local": 0}, {"n_global": 2, "n_local": 2}),
        volumes=Kind(
            "monai:resnet10",
            16,
            {"n_global": 4, "n_local": 0, "global_size": 48},
            {"n_global": 2, "n_local": 2, "global_size": 48},
        ),
        slices=256,
    ),
    "workstation": Recipe(
        images=Kind(
            "vit_small_patch16_224",
            256,
            {"n_global": 4, "n_local": 0, "global_size": 128},
            {"n_global": 2, "n_local": 6, "global_size": 224},
        ),
        volumes=Kind(
            "monai:vit_small",
            64,
            {"n_global": 2, "n_local": 6, "global_size": 96},
            {"n_global": 2, "n_local": 6, "global_size": 96},
        ),
        slices=1024,
    ),
    # the paper's best batch (Table 1c); its larger backbones have not been tried here
    "cluster": Recipe(
        images=Kind(
            "vit_base_patch16_224",
            512,
            {"n_global": 4, "n_local": 0, "global_size": 128},
            {"n_global": 2, "n_local": 6, "global_size": 224},
        ),
        volumes=Kind(
            "monai:vit",
            128,
            {"n_global": 2, "n_local": 6, "global_size": 96},
            {"n_global": 2, "n_local": 6, "global_size": 96},
        ),
        slices=1024,
    ),
}


def scale_of(device: str) -> Scale:
    """The recipe's name where nobody chose one: by the device, 'cpu' or 'cuda', and the processes of the run."""
    if device == "cpu":
        return "laptop"
    return "cluster" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "workstation"


def kind_of(recipe: Scale, *, dims: int) -> Kind:
    """A recipe's values for images (2) or volumes (3)."""
    return RECIPES[recipe].volumes if dims == 3 else RECIPES[recipe].images


def views_of(kind: Kind, *, cnn: bool, small_size: int) -> dict[str, int]:
    """n_global, n_local and global_size for an architecture; `small_size`: the modality's own on a small machine."""
    return {"global_size": small_size, **(kind.cnn if cnn else kind.vit)}
