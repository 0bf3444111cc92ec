import cv2
import numpy as np
import pytest

from data_adapters.histology.tissue import Tissue, tissue_mask
from tests.data.histology import HAEMATOXYLIN, he_picture

DAB = np.array([0.27, 0.57, 0.78])


def small(picture: np.ndarray, tissue: np.ndarray, cell: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = (picture.shape[1] // cell, picture.shape[0] // cell)
    truth = cv2.resize(tissue.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.ones(truth.shape, bool), truth


@pytest.mark.parametrize("seed", range(4))
def test_he_mask_is_the_tissue(seed: int) -> None:
    rgb, covered, truth = small(*he_picture(width=800, height=600, seed=seed))
    mask = tissue_mask(rgb, covered, stain="he")
    assert (mask == truth).mean() > 0.99
    assert abs(mask.mean() - truth.mean()) < 0.01


def ihc_picture() -> tuple[np.ndarray, np.ndarray]:
    """Pale haematoxylin counterstain everywhere in the tissue, strong DAB in a part of it."""
    tissue, positive = np.zeros((600, 800), np.uint8), np.zeros((600, 800), np.uint8)
    cv2.ellipse(tissue, (400, 300), (250, 180), 20, 0, 360, 1, -1)
    cv2.ellipse(positive, (330, 300), (90, 70), 0, 0, 360, 1, -1)
    density = tissue[..., None] * 0.25 * HAEMATOXYLIN + positive[..., None] * 1.5 * DAB
    noise = np.random.default_rng(0).normal(0, 1, (600, 800, 3))
    return np.clip(244 * np.exp(-density) + noise, 0, 255).astype(np.uint8), tissue.astype(bool)


def test_ihc_mask_has_the_pale_counterstain_too() -> None:
    rgb, covered, truth = small(*ihc_picture())
    assert (tissue_mask(rgb, covered, stain="ihc") == truth).mean() > 0.99


def test_any_reads_fluorescence_on_black_and_tinted_glass() -> None:
    picture, tissue = he_picture(width=800, height=600, seed=1)
    rgb, covered, truth = small(255 - picture, tissue)
    assert (tissue_mask(rgb, covered, stain="any") == truth).mean() > 0.99
    tinted = np.where(tissue[..., None], picture, np.array([235, 225, 205], np.uint8))
    rgb, covered, truth = small(tinted, tissue)
    assert (tissue_mask(rgb, covered, stain="any") == truth).mean() > 0.98


@pytest.mark.parametrize("stain", ["he", "ihc", "any"])
def test_empty_glass_has_no_tissue(stain: str) -> None:
    noise = np.random.default_rng(0).normal(238, 2, (100, 120, 3))
    assert not tissue_mask(noise.astype(np.uint8), np.ones((100, 120), bool), stain=stain).any()  # type: ignore[arg-type]


def test_a_slide_full_of_tissue_is_not_cut_in_two() -> None:
    density = np.random.default_rng(0).uniform(0.3, 1.2, (100, 100, 1)) * np.array([0.7, 1.5, 0.4])
    rgb = (244 * np.exp(-cv2.GaussianBlur(density, (0, 0), 3))).astype(np.uint8)
    assert tissue_mask(rgb, np.ones((100, 100), bool), stain="he").mean() > 0.99


def test_ink_and_unscanned_glass_are_not_tissue() -> None:
    rgb, covered, truth = small(*he_picture(width=800, height=600, seed=2))
    rgb[:20, :60], rgb[:20, 60:120] = (20, 140, 60), (10, 10, 12)
    covered[-20:] = False
    mask = tissue_mask(rgb, covered, stain="he")
    assert not mask[:19, :120].any()
    assert not mask[-20:].any()
    assert (mask == truth)[25:-20].mean() > 0.99


@pytest.fixture
def tissue() -> Tissue:
    _, mask = he_picture(width=160, height=120, seed=3)
    return Tissue(mask=mask, cell=16.25)


def test_packed_tissue_comes_back(tissue: Tissue) -> None:
    packed = tissue.pack()
    again = Tissue.unpack(packed)
    assert np.array_equal(again.mask, tissue.mask)
    assert again.cell == tissue.cell
    assert len(packed["bits"]) < 3000


def test_fraction_counts_the_cells_that_a_square_touches(tissue: Tissue) -> None:
    rng = np.random.default_rng(0)
    corners, side = rng.uniform(0, 1500, (50, 2)), 300.0
    share = tissue.fraction(corners[:, 0], corners[:, 1], side)
    for (x, y), value in zip(corners, share, strict=True):
        rows = slice(int(y // 16.25), int(np.ceil((y + side) / 16.25)))
        columns = slice(int(x // 16.25), int(np.ceil((x + side) / 16.25)))
        assert value == pytest.approx(tissue.mask[rows, columns].mean())


def test_drawn_squares_lie_inside_and_on_tissue(tissue: Tissue) -> None:
    size, side = (2600, 1950), 300.0
    corners = np.array([tissue.draw(np.random.default_rng(i), side=side, size=size, least=0.5) for i in range(300)])
    assert (corners >= 0).all()
    assert (corners + side <= np.array(size)).all()
    share = tissue.fraction(corners[:, 0], corners[:, 1], side)
    assert (share >= 0.5).mean() > 0.98
    assert np.ptp(corners, axis=0).min() > 400  # all over the tissue, not one place
    assert tissue.draw(np.random.default_rng(1), side=side, size=size, least=0.5) == tuple(corners[1])


def test_thin_tissue_still_gives_its_best_square() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:, 50] = True
    thin = Tissue(mask=mask, cell=10.0)
    x, y = thin.draw(np.random.default_rng(0), side=200, size=(1000, 1000), least=0.5)
    assert 0.04 < thin.fraction(np.array([x]), np.array([y]), 200)[0] < 0.06
    assert len(thin.grid(side=200, size=(1000, 1000), least=0.5, count=4)) == 1


def test_grid_is_disjoint_tissue_spread_over_the_slide(tissue: Tissue) -> None:
    size, side = (2600, 1950), 130.0
    every = tissue.grid(side=side, size=size, least=0.5, count=1000)
    corners = np.array(every)
    assert (tissue.fraction(corners[:, 0], corners[:, 1], side) >= 0.5).all()
    assert np.allclose(np.diff(np.unique(corners[:, 0].round(6))) % side, 0)
    assert len(set(every)) == len(every)
    few = tissue.grid(side=side, size=size, least=0.5, count=8)
    assert len(few) == 8
    assert set(few) < set(every)
    assert np.ptp(np.array(few)[:, 1]) > 0.6 * np.ptp(corners[:, 1])
