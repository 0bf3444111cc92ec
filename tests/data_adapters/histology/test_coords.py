"""Patch coordinates of CLAM and TRIDENT in place of the tissue mask."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_adapters import UserError, create
from data_adapters.base import Record, Rejected
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.histology.coords import Patches
from tests.data.histology import he_picture, write_pyramid

SMALL = {"global_size": 64, "local_size": 32, "mpp": 0.5, "mpp_range": None}
CLAM = {"patch_size": 64, "patch_level": 1, "level0_magnification": 20}
TRIDENT = {"patch_size": 64, "patch_size_level0": 128, "level0_width": 700, "level0_height": 600}
CORNERS = np.array([[200, 100], [328, 100], [200, 228]])


def scanned(
    folder: Path, corners: Any = CORNERS, facts: dict[str, Any] = CLAM, name: str = "s.h5", **options: Any
) -> Record | Rejected:
    archive, coords = folder / "archive", folder / "coords"
    archive.mkdir(exist_ok=True)
    write_pyramid(archive / "s.tif", he_picture(width=700, height=600, seed=4)[0])
    (coords / name).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(coords / name, "w") as file:
        file["coords"] = corners
        file["coords"].attrs.update(facts)
    (found,) = HistologyAdapter(**SMALL, coords=coords, **options).scan(archive)
    return found


@pytest.mark.parametrize(("facts", "name"), [(CLAM, "s.h5"), (TRIDENT, "patches/s_patches.h5")])
def test_regions_are_taken_about_the_patches(tmp_path: Path, facts: dict[str, Any], name: str) -> None:
    record = scanned(tmp_path, facts=facts, name=name)
    assert isinstance(record, Record), record
    patches = Patches.unpack(json.loads(json.dumps(record.meta["histology"]["patches"])))
    assert np.array_equal(patches.corners, CORNERS)
    assert (patches.patch, record.samples) == (128, 3)  # 3 patches hold 3.9 regions of 112 pixels
    assert "tissue" not in record.meta["histology"]
    picture = he_picture(width=700, height=600, seed=4)[0]
    # as a worker or the service sees it: the folder is not part of the encoder's recipe
    adapter = HistologyAdapter(**SMALL)
    out = adapter.prepare(record).numpy().transpose(0, 2, 3, 1)
    exact = [picture[y + 32 : y + 96, x + 32 : x + 96] for x, y in CORNERS]
    assert np.array_equal(out, exact)
    seen = {np.asarray(adapter.read(record, np.random.default_rng(i)).pixels).tobytes() for i in range(30)}
    assert seen == {picture[y + 8 : y + 120, x + 8 : x + 120].tobytes() for x, y in CORNERS}


def test_the_folder_stays_out_of_the_description(tmp_path: Path) -> None:
    assert str(tmp_path) not in json.dumps(HistologyAdapter(**SMALL, coords=tmp_path).describe())


@pytest.mark.parametrize(
    ("corners", "facts", "cause"),
    [
        ([[200, 600]], CLAM, "outside of the slide"),
        ([[-1, 0]], CLAM, "outside of the slide"),
        (CORNERS, {**TRIDENT, "level0_width": 701}, "outside of the slide"),
        (CORNERS, {"patch_size": 64}, "do not tell the patch's size"),
        (CORNERS, {"patch_size": 64, "patch_level": 7}, "do not tell the patch's size"),
        (CORNERS.astype(float), CLAM, "unknown layout"),
        (np.zeros((0, 2), int), CLAM, "no patch on the slide"),
    ],
)
def test_foreign_coordinates_are_refused(tmp_path: Path, corners: Any, facts: dict[str, Any], cause: str) -> None:
    found = scanned(tmp_path, corners, facts)
    assert isinstance(found, Rejected)
    assert cause in found.reason
    assert found.remedy


def test_patches_may_hang_over_the_edge(tmp_path: Path) -> None:
    record = scanned(tmp_path, [[650, 550]])
    assert isinstance(record, Record)
    picture = he_picture(width=700, height=600, seed=4)[0]
    got = HistologyAdapter(**SMALL).prepare(record)[0].numpy().transpose(1, 2, 0)
    assert np.array_equal(got, picture[-64:, -64:])


def test_a_slide_without_a_file_and_a_missing_folder(tmp_path: Path) -> None:
    found = scanned(tmp_path, name="other.h5")
    assert isinstance(found, Rejected)
    assert found.reason == "slide without patch coordinates"
    with pytest.raises(UserError, match="does not exist"):
        create("histology", coords=str(tmp_path / "none"))
