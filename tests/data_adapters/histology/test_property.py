"""A region at any place, scale and pyramid is what a high-quality reduction of level 0 gives."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_adapters.histology.formats import Handles
from data_adapters.histology.recipe import RATIO
from tests.data.histology import he_picture, write_pyramid

LEVELS = (1, 2, 4)
COMPRESSIONS = ("deflate", "jpeg")  # JPEG tiles are reduced while they are decoded
WIDTH, HEIGHT = 1000, 900
# Mean absolute difference in grey levels against Pillow's BOX reduction (linear where the field is enlarged). Its
# source: corners are rounded to pixels of the level that is read, which may be half a pixel of the result.
TOLERANCE = 4.0


@pytest.fixture(scope="module")
def pyramids(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[int, str], Path], np.ndarray]:
    folder = tmp_path_factory.mktemp("pyramids")
    picture, _ = he_picture(width=WIDTH, height=HEIGHT, seed=4)
    paths = {
        (n, c): write_pyramid(folder / f"{n}-{c}.tif", picture, levels=n, tile=128, compression=c, quality=97)
        for n in LEVELS
        for c in COMPRESSIONS
    }
    return paths, picture


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    levels=st.sampled_from(LEVELS),
    compression=st.sampled_from(COMPRESSIONS),
    reader=st.sampled_from(["openslide", "tiles"]),
    downsample=st.floats(0.9, 6),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_any_region_agrees_with_a_reduction_of_level_0(
    pyramids: tuple[dict[tuple[int, str], Path], np.ndarray],
    levels: int,
    compression: str,
    reader: str,
    downsample: float,
    x: float,
    y: float,
) -> None:
    paths, picture = pyramids
    out = 96
    side = out * downsample
    corner = (x * (WIDTH - side), y * (HEIGHT - side))
    handles = Handles()
    box = (*corner, corner[0] + side, corner[1] + side)
    filtering = Image.Resampling.BOX if downsample > 1 else Image.Resampling.BILINEAR
    exact = np.asarray(Image.fromarray(picture).resize((out, out), filtering, box=box)).astype(int)
    got = handles.read(paths[levels, compression], corner=corner, extent=(side, side), out=(out, out), reader=reader)
    difference = np.abs(got - exact).mean()
    assert difference < TOLERANCE
    # A field in a wrong place would be no worse than this; empty glass is the same everywhere.
    shifted = np.abs(np.roll(got, 3, axis=(0, 1)) - exact).mean()
    assert difference < 0.75 * shifted or shifted < TOLERANCE
    source = np.asarray(handles.source(paths[levels, compression], corner=corner, side=side, out=out, reader=reader))
    shrunk = cv2.resize(source, (out, out), interpolation=cv2.INTER_AREA if len(source) >= out else cv2.INTER_LINEAR)
    assert np.abs(shrunk - exact).mean() < TOLERANCE
    assert abs(source.mean() - exact.mean()) < 1.5
    assert 0.85 * out <= len(source) <= 2.1 * out
    assert RATIO[0] < source.shape[0] / source.shape[1] < RATIO[1]
