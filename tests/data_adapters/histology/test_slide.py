"""Regions of slides against the picture that was written, and the handles that read them."""

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from data_adapters.errors import BadFileError
from data_adapters.histology import slide
from data_adapters.histology.formats import OPENSLIDE, Handles, slide_meta
from data_adapters.histology.options import HistologyOptions
from tests.data.histology import he_picture, write_dicom_slide, write_pyramid, write_svs


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    picture, _ = he_picture(width=1200, height=1000, seed=4)
    return write_pyramid(tmp_path_factory.mktemp("slide") / "a.tif", picture), picture


@pytest.mark.parametrize("downsample", [0.8, 1.0, 1.3, 2.0, 2.7, 4.0, 4.6])
def test_region_equals_area_reduction_of_level_0(written: tuple[Path, np.ndarray], downsample: float) -> None:
    path, picture = written
    out = 200
    side = out * downsample
    x, y = 120, 60
    region = Handles().read(path, corner=(x, y), extent=(side, side), out=(out, out))
    n = round(side)
    mode = cv2.INTER_AREA if downsample >= 1 else cv2.INTER_LINEAR
    expected = cv2.resize(picture[y : y + n, x : x + n], (out, out), interpolation=mode)
    difference = np.abs(region.astype(int) - expected)
    assert region.shape == (out, out, 3)
    assert difference.mean() < 2.5
    # A shift by one pixel of the result would be several times worse.
    assert np.abs(np.roll(region, 1, axis=1).astype(int) - expected)[:, 1:].mean() > 2 * difference.mean()


def test_rectangles_keep_their_axes(written: tuple[Path, np.ndarray]) -> None:
    path, picture = written
    region = Handles().read(path, corner=(40, 500), extent=(600, 200), out=(300, 100))
    expected = cv2.resize(picture[500:700, 40:640], (300, 100), interpolation=cv2.INTER_AREA)
    assert np.abs(region.astype(int) - expected).mean() < 1


def test_outside_of_the_scan_is_white(written: tuple[Path, np.ndarray]) -> None:
    path, picture = written
    region = Handles().read(path, corner=(-50, 100), extent=(150, 100), out=(150, 100))
    assert (region[:, :49] == 255).all()
    assert np.array_equal(region[:, 50:], picture[100:200, 0:100])


def test_transparency_is_composited_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[...] = (100, 0, 200, 255)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 51
    rgb, alpha = slide.on_white(rgba)
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[0, 1].tolist() == [224, 204, 244]  # .2 v + .8 255
    assert rgb[1, 1].tolist() == [100, 0, 200]
    assert alpha[0].tolist() == [0, 51]


def test_overview_is_the_area_mean_even_without_small_levels(tmp_path: Path) -> None:
    picture = np.tile(he_picture(width=300, height=260, seed=8)[0], (5, 7, 1))
    path = write_pyramid(tmp_path / "flat.tif", picture, levels=1)
    rgb, covered, cell = slide.overview(slide.open_slide(path), path)
    assert cell == 16
    assert rgb.shape == (81, 131, 3)  # 1300 // 16, 2100 // 16
    assert covered.all()
    exact = picture[: 81 * 16, : 131 * 16].reshape(81, 16, 131, 16, 3).mean(axis=(1, 3))
    assert np.abs(rgb - exact).max() <= 1


def test_scale_without_level_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, _ = he_picture(width=600, height=600)
    path = write_pyramid(tmp_path / "flat.tif", picture, levels=1)
    monkeypatch.setattr(slide, "MAX_REGION_PIXELS", 300**2)
    with pytest.raises(BadFileError, match="no pyramid level"):
        Handles().read(path, corner=(0, 0), extent=(400, 400), out=(100, 100))


@pytest.mark.parametrize("second", [(512, 512), (300, 128)])
def test_pages_that_are_no_pyramid_are_refused(tmp_path: Path, second: tuple[int, int]) -> None:
    path = tmp_path / "odd.tif"
    with tifffile.TiffWriter(path) as file:
        for reduced, (width, height) in enumerate([(512, 512), second]):
            picture, _ = he_picture(width=width, height=height)
            file.write(picture, tile=(128, 128), photometric="rgb", metadata=None, subfiletype=reduced)
    with pytest.raises(BadFileError, match="not levels of one picture"):
        slide.header(slide.open_slide(path), path)


def test_stacks_16_bits_and_greyscale_are_refused(tmp_path: Path) -> None:
    picture, _ = he_picture(width=512, height=512)
    stack = tmp_path / "stack.tif"
    with tifffile.TiffWriter(stack) as file:
        for _ in range(2):
            file.write(picture, tile=(128, 128), photometric="rgb", metadata=None)
    cases = {
        "several pictures": stack,
        "16 bits": write_pyramid(tmp_path / "deep.tif", picture.astype(np.uint16) * 257),
        "not RGB": write_pyramid(tmp_path / "grey.tif", picture[..., 1]),
    }
    options = HistologyOptions()
    for cause, path in cases.items():
        assert slide.detect(path) == "generic-tiff"
        with pytest.raises(BadFileError, match=cause):
            slide_meta(path, OPENSLIDE, Handles(), options, tissue=False)
    grey = slide_meta(cases["not RGB"], OPENSLIDE, Handles(), HistologyOptions(stain="any"), tissue=True)
    assert grey["size"] == [512, 512]


@pytest.mark.parametrize(("unit", "per_um"), [("INCH", 25400), ("CENTIMETER", 10000), ("NONE", None)])
def test_units_of_resolution(tmp_path: Path, unit: str, per_um: float | None) -> None:
    """Pixels an inch and a centimetre; without a unit the numbers say nothing, and the scan asks for mpp."""
    path = tmp_path / "a.tif"
    pixels = np.full((512, 512, 3), 200, np.uint8)
    number = (per_um or 10000) / 0.25
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(number, number), resolutionunit=unit)
    found = slide.header(slide.open_slide(path), path).mpp
    assert found is None if per_um is None else found == pytest.approx(0.25, rel=1e-3)


def test_oblong_pixels_are_refused_and_missing_mpp_is_none(tmp_path: Path) -> None:
    picture, _ = he_picture(width=512, height=512)
    oblong = write_pyramid(tmp_path / "oblong.tif", picture, mpp=(0.5, 0.6))
    with pytest.raises(BadFileError, match="not square"):
        slide.header(slide.open_slide(oblong), oblong)
    silent = write_pyramid(tmp_path / "silent.tif", picture, mpp=None)
    assert slide.header(slide.open_slide(silent), silent).mpp is None
    told = write_pyramid(tmp_path / "told.tif", picture, mpp=0.25)
    assert slide.header(slide.open_slide(told), told).mpp == pytest.approx(0.25, rel=1e-3)


def test_vendor_slides_give_their_pixels(tmp_path: Path) -> None:
    picture, _ = he_picture(width=1200, height=1000, seed=4)
    (tmp_path / "dicom").mkdir()
    paths = [
        write_svs(tmp_path / "a.svs", picture, mpp=0.252),
        *write_dicom_slide(tmp_path / "dicom", picture, mpp=0.252),
    ]
    for path in paths:
        head = slide.header(slide.open_slide(path), path)
        assert (head.size, head.mpp) == ((1200, 1000), pytest.approx(0.252))
        region = Handles().read(path, corner=(300, 200), extent=(300, 300), out=(300, 300))
        assert np.abs(region.astype(int) - picture[200:500, 300:600]).mean() < 4  # JPEG


def test_handles_are_few_and_found_again(tmp_path: Path) -> None:
    picture, _ = he_picture(width=256, height=256)
    paths = [write_pyramid(tmp_path / f"{i}.tif", picture, levels=1) for i in range(4)]
    handles = Handles(limit=2)
    first = handles.get(paths[0])
    assert handles.get(paths[0]) is first
    for path in paths[1:]:
        handles.get(path)
    assert len(handles) == 2
    assert first.dimensions == (256, 256)  # still open for whoever holds it
    assert handles.get(paths[0]) is not first


def test_a_changed_file_is_opened_anew(tmp_path: Path) -> None:
    handles = Handles()
    path = tmp_path / "upload.tif"
    for seed in range(2):
        picture, _ = he_picture(width=300 + 20 * seed, height=300, seed=seed)
        write_pyramid(path, picture, levels=1)
        assert np.array_equal(handles.read(path, corner=(0, 0), extent=(300, 300), out=(300, 300)), picture[:, :300])


def test_a_dead_handle_is_evicted(tmp_path: Path) -> None:
    picture, _ = he_picture(width=1024, height=1024)
    path = write_pyramid(tmp_path / "a.tif", picture, levels=1, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        place, length = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * length)
    handles = Handles()
    with pytest.raises(BadFileError, match="cannot be decoded"):
        handles.read(path, corner=(800, 800), extent=(200, 200), out=(200, 200))
    assert len(handles) == 0
    assert handles.read(path, corner=(0, 0), extent=(200, 200), out=(200, 200)).shape == (200, 200, 3)


def test_handles_do_not_travel(written: tuple[Path, np.ndarray]) -> None:
    handles = Handles(limit=3)
    handles.get(written[0])
    copy = pickle.loads(pickle.dumps(handles))
    assert (len(handles), len(copy), copy.limit) == (1, 0, 3)
    assert copy.read(written[0], corner=(0, 0), extent=(10, 10), out=(10, 10)).shape == (10, 10, 3)


def test_a_forked_process_opens_its_own_handles(written: tuple[Path, np.ndarray]) -> None:
    path, picture = written
    handles = Handles()
    mine = [handles.get(path, reader) for reader in ("openslide", "tiles")]
    child = os.fork()
    if child == 0:
        try:
            own = [handles.get(path, reader) for reader in ("openslide", "tiles")]
            part = handles.read(path, corner=(40, 50), extent=(60, 60), out=(60, 60), reader="tiles")
            good = not any(a is b for a, b in zip(mine, own, strict=True))
            os._exit(0 if good and np.array_equal(part, picture[50:110, 40:100]) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [handles.get(path, reader) for reader in ("openslide", "tiles")] == mine


def test_missing_and_foreign_files_have_a_reason(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="not found"):
        Handles().get(tmp_path / "none.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(BadFileError, match="not a slide"):
        Handles().get(tmp_path / "text.svs")


def test_label_is_there_and_never_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_adapters import create

    picture, _ = he_picture(width=1200, height=1000, seed=4)
    path = write_svs(tmp_path / "a.svs", picture)
    assert "label" in openslide.OpenSlide(path).associated_images

    def forbidden(self: object) -> None:
        raise AssertionError("associated images show the patient's label")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(forbidden))
    adapter = create("histology", global_size=64, local_size=32)
    (record,) = adapter.scan(path)
    pixels = adapter.prepare(record).numpy()  # type: ignore[arg-type]
    adapter.read(record, np.random.default_rng(0))  # type: ignore[arg-type]
    assert pixels.shape[1:] == (3, 64, 64)
    assert not ((pixels[:, 0] > 250) & (pixels[:, 1] < 5)).any()  # the label is pure red
