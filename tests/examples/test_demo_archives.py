"""The made archives are real files of their formats, seeded, split by group, and not told apart by colour and blobs."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import data_adapters
from data_adapters.base import Record
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from examples.demo import archives, galaxies, heads, phantom, slides
from examples.demo.common import generators, read_labels, split_of

Maker = Callable[[Path, int], Path]


def make_galaxies(folder: Path, seed: int) -> Path:
    return galaxies.make(folder, n=45, size=64, seed=seed, workers=1)


def make_slides(folder: Path, seed: int) -> Path:
    return slides.make(folder, n=3, side=1536, per_class=3, seed=seed, workers=1)


def make_heads(folder: Path, seed: int) -> Path:
    return heads.make(folder, n=8, seed=seed, workers=1)


MAKERS: dict[str, Maker] = {"galaxy": make_galaxies, "histology": make_slides, "mri": make_heads}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in MAKERS}
    for name, folder in folders.items():
        MAKERS[name](folder, 0)
    return folders


def pixels_digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(_content(p)).hexdigest() for p in files}


def _content(path: Path) -> bytes:
    if path.name.endswith(".nii.gz"):  # the gzip header holds the time of writing
        import nibabel as nib

        image = nib.load(path)
        return np.asarray(image.dataobj).tobytes() + image.affine.tobytes()
    return path.read_bytes()


@pytest.mark.parametrize("name", ["galaxy", "histology"])
def test_the_seed_decides_every_pixel(name: str, made: dict[str, Path], tmp_path: Path) -> None:
    first = pixels_digest(made[name])
    MAKERS[name](tmp_path / "again", 0)
    assert pixels_digest(tmp_path / "again") == first
    MAKERS[name](tmp_path / "other", 1)
    other = pixels_digest(tmp_path / "other")
    images = [path for path in first if not path.endswith(".csv")]
    assert all(other.get(path) != first[path] for path in images)


def test_a_head_is_decided_by_its_generator() -> None:
    def scan(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return heads.acquire(phantom.draw_head(rng, lesion="mass"), rng, weighting="T1w")

    first = scan(3)
    assert np.array_equal(first, scan(3))
    assert not np.array_equal(first, scan(4))


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    galaxies.make(tmp_path / "one", n=6, size=32, workers=1)
    galaxies.make(tmp_path / "two", n=6, size=32, workers=2)
    assert pixels_digest(tmp_path / "one") == pixels_digest(tmp_path / "two")


@pytest.mark.parametrize("name", list(MAKERS))
def test_labels_name_existing_files_and_groups_keep_to_one_split(name: str, made: dict[str, Path]) -> None:
    rows = read_labels(made[name] / "labels.csv")
    assert all((made[name] / row["path"]).is_file() for row in rows)
    groups = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]
    classes = {"galaxy": galaxies.CLASSES, "histology": slides.CLASSES, "mri": heads.CLASSES}[name]
    assert {row["label"] for row in rows} == set(classes)
    assert not any(row["label"] in row["path"] for row in rows)


def test_mri_classes_are_balanced_in_both_splits(made: dict[str, Path]) -> None:
    counts = Counter((row["label"], row["split"]) for row in read_labels(made["mri"] / "labels.csv"))
    assert counts == {(label, split): 2 for label in heads.CLASSES for split in ("train", "val")}


@pytest.mark.parametrize(("total", "val"), [(2, 1), (4, 1), (16, 4), (100, 25)])
def test_a_quarter_of_the_groups_validates(total: int, val: int) -> None:
    assert [split_of(i, total) for i in range(total)] == ["train"] * (total - val) + ["val"] * val


def test_fits_carries_bands_position_and_pixel_scale(made: dict[str, Path]) -> None:
    from astropy.io import fits
    from astropy.wcs import WCS

    file = next((made["galaxy"] / "images").glob("*.fits"))
    with fits.open(file) as hdus:
        header, cube = hdus[0].header, hdus[0].data
    assert cube.shape == (3, 64, 64) and cube.dtype == ">f4" and np.isfinite(cube).all()
    assert header["BANDS"] == "g,r,z" and header["BUNIT"] == "nanomaggy"
    centre = WCS(header).celestial.pixel_to_world(31.5, 31.5)
    assert centre.ra.deg == pytest.approx(header["RA"]) and centre.dec.deg == pytest.approx(header["DEC"])
    assert header["PIXSCALE"] == pytest.approx(header["CD2_2"] * 3600)


def test_slides_open_in_openslide_with_mpp_and_a_pyramid(made: dict[str, Path]) -> None:
    import openslide

    with openslide.OpenSlide(made["histology"] / "slides" / "slide-000.tiff") as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(slides.MPP)
        assert slide.level_dimensions == ((1536, 1536), (384, 384), (96, 96))
        overview = np.asarray(slide.read_region((0, 0), 2, (96, 96)).convert("RGB"))
    tissue = overview.min(2) < 215
    assert 0.3 < tissue.mean() < 0.95
    assert overview[0, 0].min() > 220  # the corner is bare glass


def test_tiles_are_cut_from_their_slide_at_half_a_micron(made: dict[str, Path]) -> None:
    import openslide
    from PIL import Image

    row = read_labels(made["histology"] / "labels.csv")[0]
    stem = Path(row["path"]).stem
    x, y = (int(stem.split(f"_{axis}")[1][:5]) for axis in "xy")
    with Image.open(made["histology"] / row["path"]) as tile:
        assert 25400 / tile.info["dpi"][0] == pytest.approx(slides.MPP, rel=1e-3)
        pixels = np.asarray(tile).astype(int)
    with openslide.OpenSlide(made["histology"] / "slides" / f"{row['group']}.tiff") as slide:
        region = np.asarray(slide.read_region((x, y), 0, (128, 128)).convert("RGB")).astype(int)
    assert np.abs(pixels - region).mean() < 8  # JPEG


def test_heads_are_ras_at_two_millimetres(made: dict[str, Path]) -> None:
    import nibabel as nib

    for path in sorted(made["mri"].glob("sub-*/anat/*.nii.gz"))[:2]:
        image = nib.load(path)
        assert image.shape == phantom.SHAPE and image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == (2.0, 2.0, 2.0) and image.header.get_xyzt_units()[0] == "mm"


def test_heads_are_made_of_tissue_and_classes_differ_as_their_names_say() -> None:
    volumes = []
    for lesion in heads.CLASSES:
        maps = phantom.draw_head(np.random.default_rng(0), lesion=lesion).maps
        total = maps.sum(0)
        assert total.min() >= 0 and total.max() <= 1 + 1e-4  # shares of one voxel
        volumes.append(dict(zip(phantom.TISSUES, maps.sum((1, 2, 3)).tolist(), strict=True)))
    none, mass, foci, atrophy = volumes
    assert none["lesion"] == none["oedema"] == atrophy["lesion"] == 0
    assert mass["oedema"] > 0 and mass["lesion"] > 0 and foci["lesion"] > 0 == foci["oedema"]
    assert atrophy["csf"] > 1.1 * none["csf"]


@pytest.mark.parametrize(
    ("name", "part", "catalogue"),
    [
        ("galaxy", ".", "labels.csv"),
        ("histology", "slides", "slides.csv"),
        ("histology", "tiles", "labels.csv"),
        ("mri", ".", "labels.csv"),
    ],
)
def test_the_adapters_read_the_archives(name: str, part: str, catalogue: str, made: dict[str, Path]) -> None:
    table = Catalog(made[name] / catalogue)
    adapter = data_adapters.create(name, global_size=32, local_size=32)
    found = list(adapter.scan(made[name] / part, catalog=table))
    records = [item for item in found if isinstance(item, Record)]
    assert len(records) == len(found) == len(table) and not table.unused()
    assert {record.split for record in records} == {"train", "val"}
    adapter = adapter.fit(records)
    pixels = adapter.prepare(records[0])
    assert pixels.shape[2:] == (32, 32)
    views = adapter.views(adapter.read(records[0], np.random.default_rng(0)), np.random.default_rng(0))
    assert len(views) == adapter.spec.n_views


def thumbnails(images: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() for image in images])


def probe_score(features: np.ndarray, labels: np.ndarray, *, train: int) -> float:
    scores = []
    for strength in (0.003, 0.03, 0.3):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        model.fit(features[:train], labels[:train])
        scores.append(balanced_accuracy_score(labels[train:], model.predict(features[train:])))
    return max(scores)  # the best setting is chosen on the test items: generous to thumbnails


def shape_features(image: np.ndarray) -> list[float]:
    """Concentration, asymmetry, elongation and clumpiness of the r band: what galaxy morphology is measured by."""
    light = np.clip(cv2.GaussianBlur(image, (0, 0), 1.0), 0, None)
    side = light.shape[0]
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    weight = light * np.exp(-(x**2 + y**2) / (2 * (side / 4) ** 2))
    weight = np.where(weight > 0.02 * weight.max(), weight, 0)
    total = weight.sum()
    x, y = x - (x * weight).sum() / total, y - (y * weight).sum() / total
    xx, yy, xy = ((p * weight).sum() / total for p in (x * x, y * y, x * y))
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    radius = np.sqrt(x**2 + y**2)
    order = np.argsort(radius.ravel())
    growth = np.cumsum(weight.ravel()[order]) / total
    r20, r50, r80 = (radius.ravel()[order][np.searchsorted(growth, q)] for q in (0.2, 0.5, 0.8))
    asymmetry = np.abs(weight - weight[::-1, ::-1]).sum() / total
    rough = np.abs(weight - cv2.GaussianBlur(weight, (0, 0), 3)).sum() / total
    return [r80 / (r20 + 1), r50, asymmetry, rough, np.log((xx + yy + root) / (xx + yy - root + 1e-3)), np.log(total)]


def test_galaxy_thumbnails_do_worse_than_shape() -> None:
    per_class, train = 75, 220
    rngs = generators(5, 4 * per_class)
    labels = np.array([galaxies.CLASSES[i % 4] for i in range(4 * per_class)])
    cubes = [galaxies.draw(str(kind), rng, size=96) for kind, rng in zip(labels, rngs, strict=True)]
    colour = np.stack([np.arcsinh(cube.transpose(1, 2, 0) / 0.02) for cube in cubes])
    flat = probe_score(thumbnails(colour), labels, train=train)
    shape = probe_score(np.array([shape_features(cube[1]) for cube in cubes]), labels, train=train)
    assert flat < 0.65
    assert shape > flat + 0.05


def test_slide_thumbnails_leave_much_to_learn() -> None:
    tiles, labels, groups = [], [], []
    for number, rng in enumerate(generators(6, 4)):
        slide = slides.draw(rng, side=1536)
        for x, y, label in slides.labelled_places(slide.classes, rng, per_class=12):
            tiles.append(slide.pixels[y : y + slides.TILE, x : x + slides.TILE])
            labels.append(label)
            groups.append(number)
    train = int(np.sum(np.array(groups) < 3))
    score = probe_score(thumbnails(np.stack(tiles)).astype(float), np.array(labels), train=train)
    assert score < 0.65


def test_an_unfinished_archive_is_made_anew_and_a_foreign_folder_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    made = archives.make("galaxy", folder, n=3)
    assert made.complete
    made.labels.unlink()
    (folder / "images" / "left-over.fits").touch()
    assert not archives.Archive.at(folder, "galaxy").complete
    archives.make("galaxy", folder, n=2)
    assert len(list((folder / "images").iterdir())) == 2

    own = tmp_path / "own"
    own.mkdir()
    (own / "patient.nii").write_text("precious")
    with pytest.raises(UserError, match="not made by the demo"):
        archives.make("mri", own, n=1)
    assert (own / "patient.nii").read_text() == "precious"
    with pytest.raises(UserError, match="ARCHIVE="):
        archives.make("ultrasound", tmp_path / "new")


def test_the_command_makes_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "galaxies"
    assert archives.main(["galaxy", "--out", str(out), "--n", "2"]) == 0
    assert len(read_labels(out / "labels.csv")) == 2
    (out / "made-by-demo.txt").unlink()
    assert archives.main(["galaxy", "--out", str(out), "--n", "2"]) == 1
    assert "--out" in capsys.readouterr().out
