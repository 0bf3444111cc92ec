"""How the vector of an image is formed from passes of the backbone: input size, fixed views, joined layers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_adapters.base import Adapter
from lejepa_med.errors import ConfigError, EncoderError

VIEWS, LAYERS = (1, 2, 4, 8), (1, 2)
SEEN = {
    1: "the image",
    2: "the image and its mirror image, left to right",
    4: "the image and its mirror images, left to right, top to bottom and both",
    8: "the image, its three mirror images, and these four with rows and columns exchanged",
}


@dataclass(frozen=True, kw_only=True)
class Formation:
    """Part of an encoder's preprocessing: vectors of different formations are not comparable.

    Attributes:
        size: side of the prepared image, pixels or voxels; it may be larger than in training (arXiv 1906.06423).
        views: fixed views whose vectors are averaged, see `fixed_views`; so many passes an image.
        layers: 1, the pooled output; 2, that of the last stage or block but one, and then the pooled output (for a ViT,
            with the class token, the concatenated tokens of the articles' linear probes).
    """

    size: int
    views: int = 1
    layers: int = 1

    def text(self, *, dims: int) -> str:
        """What is averaged and joined, and what one image costs, as a phrase."""
        parts = [f"{self.size} {'voxels' if dims == 3 else 'px'}"]
        if self.views > 1:
            parts.append(f"mean over {self.views} fixed views")
        if self.layers > 1:
            parts.append("the last two layers joined")
        return f"{', '.join(parts)}: {self.views} pass{'es' if self.views > 1 else ''} an image"

    def differs(self, other: "Formation") -> dict[str, tuple[int, int]]:
        """Names of what differs, with the values here and there."""
        return {name: (mine, vars(other)[name]) for name, mine in vars(self).items() if mine != vars(other)[name]}


def seen_in(formation: Formation, *, dims: int) -> str:
    """What the fixed views show, as a phrase."""
    if dims == 2 or formation.views <= 2:
        return SEEN[formation.views].replace("image", "image" if dims == 2 else "volume")
    return f"the volume, mirrored along {formation.views.bit_length() - 1} axes in all combinations"


def formation_of(info: dict[str, Any]) -> Formation:
    """What lejepa_med.json records; a plain pass at the training size where an earlier release wrote it.

    Raises:
        EncoderError: a newer release recorded what this one does not compute.
    """
    recorded = {"size": info["spec"]["global_size"], **info.get("formation", {})}
    try:
        formation = Formation(**recorded)
    except TypeError:
        formation = None
    if formation is None or formation.views not in VIEWS or formation.layers not in LAYERS:
        raise EncoderError(
            f"This encoder asks for vectors that this release does not compute ({recorded}).",
            remedy=f"Install lejepa-med {info.get('version', 'in the release')}, which wrote it.",
        )
    return formation


def check_formation(formation: Formation, adapter: Adapter) -> None:
    """Refuse what the modality does not allow.

    Raises:
        ConfigError: with what it allows.
    """
    most, usual = most_views(adapter), adapter.spec.global_size
    allowed = [views for views in VIEWS if views <= most]
    listed = " or ".join(", ".join(map(str, allowed)).rsplit(", ", 1))
    if formation.views not in VIEWS:
        raise ConfigError(f"There are no {formation.views} fixed views.", remedy=f"Choose {listed}.")
    if formation.views not in allowed:
        raise ConfigError(
            f"{formation.views} fixed views are asked for, but the modality '{adapter.name}', with its options, allows "
            f"{listed}: other mirrored or turned images do not show the same thing.",
            remedy=f"Choose {listed}.",
        )
    if formation.layers not in LAYERS:
        raise ConfigError(f"{formation.layers} layers cannot be joined.", remedy="Choose 1 or 2.")
    if formation.size != usual and not getattr(adapter, "prepares_any_size", False):
        raise ConfigError(
            f"The modality '{adapter.name}' prepares images of {usual} pixels only, its views.global_size, not of "
            f"{formation.size}.",
            remedy="Leave out the size; or let its prepare() follow self.options.prepared_size and set "
            "prepares_any_size = True in its class.",
        )


def most_views(adapter: Adapter) -> int:
    """How many fixed views the modality allows; 1 where it does not say."""
    return int(getattr(adapter, "most_views", 1))


def fixed_views(pixels: Tensor, views: int) -> Tensor:
    """(B, C, H, W) -> (views * B, C, H, W), view by view; likewise (B, C, D, H, W).

    Images: as they are, mirrored along columns, along rows, along both, then these four transposed: the dihedral group.
    Volumes: mirrored along the axes W, H and D, in all combinations.
    """
    found = [pixels]
    for step in range(1, views.bit_length()):  # each doubles the views
        transposed = step == 3 and pixels.ndim == 4
        found += [one.transpose(-1, -2) if transposed else one.flip(-step) for one in found]
    return torch.cat(found) if views > 1 else pixels
