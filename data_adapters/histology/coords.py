"""Patch coordinates that CLAM or TRIDENT has written: where a lab's own segmentation found tissue.

Only the file format is read: dataset `coords` (n, 2), left and top at level 0, with attributes that tell the side of a
patch. They take the place of this adapter's tissue mask.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.histology.hdf5 import COORDS
from data_adapters.histology.slide import SlideHeader
from data_adapters.openfiles import own_dataset

# CLAM: patches/STEM.h5; TRIDENT: patches/STEM_patches.h5. A folder "patches" below the given one is looked into too.
NAMES = ("{}.h5", "{}_patches.h5", "patches/{}.h5", "patches/{}_patches.h5")
FOLDER_REMEDY = "Write the coordinates again from this slide (CLAM or TRIDENT)."


@dataclass(frozen=True)
class Patches:
    """Patches of one slide.

    Attributes:
        corners: (n, 2) int, left and top, level-0 pixels.
        patch: their side, level-0 pixels.
    """

    corners: np.ndarray
    patch: float

    def pack(self) -> dict[str, Any]:
        """JSON for the manifest: about a byte or two a patch, since neighbours differ by one step."""
        steps = np.diff(self.corners, axis=0, prepend=0).astype("<i4")
        bits = base64.b64encode(zlib.compress(steps.T.tobytes(), 9)).decode("ascii")
        return {"count": len(self.corners), "patch": self.patch, "bits": bits}

    @staticmethod
    def unpack(packed: Mapping[str, Any]) -> "Patches":
        """The Patches that `pack` wrote."""
        return _unpack(packed["bits"], int(packed["count"]), float(packed["patch"]))

    @property
    def area(self) -> float:
        """Area of all patches in square level-0 pixels."""
        return len(self.corners) * self.patch**2

    def most(self, *, side: float, size: tuple[int, int]) -> float:
        """1: whoever wrote the patches has judged that there is tissue."""
        return 1.0

    def _moved(self, chosen: np.ndarray, side: float, size: tuple[int, int]) -> np.ndarray:
        """(n, 2) corners of squares of `side` about the centres of patches, moved inside the slide."""
        corners = self.corners[chosen] + (self.patch - side) / 2
        inside: np.ndarray = np.clip(corners, 0, np.maximum(np.array(size) - side, 0))
        return inside

    def draw(
        self, rng: np.random.Generator, *, side: float, size: tuple[int, int], least: float
    ) -> tuple[float, float]:
        """Corner of a square about the centre of a random patch. `least` is the tissue mask's matter."""
        corner = self._moved(rng.integers(len(self.corners), size=1), side, size)[0]
        return float(corner[0]), float(corner[1])

    def grid(self, *, side: float, size: tuple[int, int], least: float, count: int) -> list[tuple[float, float]]:
        """Corners of squares about up to `count` patches, evenly taken in the order of the file."""
        n = min(count, len(self.corners))
        chosen = ((np.arange(n) + 0.5) * len(self.corners) / n).astype(int)
        return [(float(x), float(y)) for x, y in self._moved(chosen, side, size)]


@lru_cache(maxsize=16)
def _unpack(bits: str, count: int, patch: float) -> Patches:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(bits)), "<i4").reshape(2, count).T
    return Patches(corners=np.cumsum(steps, axis=0), patch=patch)


def names(folder: Path, path: Path) -> list[Path]:
    """Where the coordinates of the slide at `path` may lie, whether or not they do."""
    return [folder / name.format(path.stem) for name in NAMES]


def find_patches(folder: Path, path: Path, header: SlideHeader) -> Patches:
    """The patches of the slide at `path` from a folder of CLAM or TRIDENT files.

    Raises:
        BadFileError: no file for this slide, or coordinates that are not this slide's.
    """
    file = next((f for f in names(folder, path) if f.is_file()), None)
    if file is None:
        raise BadFileError(
            "slide without patch coordinates",
            remedy="Add a file of its name to the folder of the option coords, or leave coords out to detect tissue.",
            path=path,
        )
    h5py = require("h5py", extra="histology")
    try:
        with h5py.File(file, "r") as opened:
            found = own_dataset(opened, COORDS)
            corners = None if found is None else np.asarray(found)
            facts = {} if found is None else {**opened.attrs, **found.attrs}
    except OSError as error:
        raise BadFileError("patch coordinates in a damaged HDF5 file", remedy=FOLDER_REMEDY, path=path) from error
    if corners is None or corners.ndim != 2 or corners.shape[1] != 2 or corners.dtype.kind not in "ui":
        raise BadFileError(
            "patch coordinates of an unknown layout",
            remedy="Give 'coords' as whole numbers of shape (n, 2).",
            path=path,
        )
    if not len(corners):
        raise BadFileError("no patch on the slide", remedy="Leave the slide out, or segment it again.", path=path)
    patches = Patches(corners=corners.astype(np.int64), patch=_side(facts, header, path))
    _check(patches, facts, header, path)
    return patches


def _side(facts: Mapping[str, Any], header: SlideHeader, path: Path) -> float:
    """Side of a patch in level-0 pixels: TRIDENT says it, CLAM gives pixels of a level."""
    try:
        if "patch_size_level0" in facts:
            side = float(facts["patch_size_level0"])
        else:
            side = float(facts["patch_size"]) * header.downsamples[int(facts["patch_level"])]
        if side >= 1:
            return side
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    raise BadFileError(
        "patch coordinates that do not tell the patch's size",
        remedy="Write the attribute patch_size_level0, or patch_size and a patch_level of this slide, to 'coords'.",
        path=path,
    )


def _check(patches: Patches, facts: Mapping[str, Any], header: SlideHeader, path: Path) -> None:
    told = [int(facts[name]) for name in ("level0_width", "level0_height") if name in facts]
    other = len(told) == 2 and tuple(told) != header.size
    # A patch may hang over the right and lower edge, which both tools allow; it may not begin outside.
    if other or bool((patches.corners < 0).any()) or bool((patches.corners >= header.size).any()):
        raise BadFileError("patch coordinates outside of the slide", remedy=FOLDER_REMEDY, path=path)
