"""Pipelines of pictures in files: the same views as the built-in recipe, independent draws, and clear refusals."""

import random
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from data_adapters import UserError, create, from_description
from data_adapters.augment import sky
from data_adapters.augment.operations import PictureOperation
from data_adapters.base import BaseAdapter, Record
from data_adapters.histology.recipe import Source
from data_adapters.mri.recipe import Slab
from data_adapters.pipeline import (
    OURS,
    REFUSED,
    SERIALIZABLE_REGISTRY,
    A,
    PicturePipeline,
    Seeded,
    _Stream,
    build_transforms,
)
from data_adapters.pipeline_file import PICTURE_KEY, PipelineError, recipe_text, symmetries
from tests.data import galaxy, images
from tests.data.histology import he_picture

SIZES = {"global_size": 48, "local_size": 24, "n_local": 2}
DOCS = Path(__file__).parents[3] / "docs" / "augmentation.md"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slab(channels: int = 1) -> Slab:
    slices = rng(1).random((5, 60, 60)).astype(np.float16)
    return Slab(slices=slices, centres=np.arange(1, 4), channels=channels, mirror=True)


FLUX = {"kind": "flux", "bands": "g,r,z", "scales": (6.0, 3.4, 2.2)}
CASES = {
    "images": ("images", {}, lambda: images.scene(80, 90)),
    "natural": ("images", {"recipe": "natural"}, lambda: images.scene(80, 90)),
    "five channels": (
        "images",
        {"channels": 5, "intensity": "window", "intensity_range": (0, 1)},
        lambda: images.scene(80, 90, 5, dtype=np.float32),
    ),
    "flux": ("galaxy", FLUX, lambda: galaxy.source(64)),
    "galaxy pictures": ("galaxy", {"kind": "picture"}, lambda: galaxy.picture(64)),
    "he": ("histology", {"mpp": None}, lambda: Source(pixels=he_picture(width=110, height=110)[0], scaled=True)),
    "ihc": (
        "histology",
        {"stain": "ihc", "stain_sigma": 0.2},
        lambda: Source(pixels=he_picture(width=110, height=110)[0], scaled=False),
    ),
    "any": ("histology", {"stain": "any"}, lambda: Source(pixels=he_picture(width=110, height=110)[0], scaled=False)),
    "mri": ("mri", {}, slab),
    "mri, three slices": ("mri", {"channels": 3}, lambda: slab(3)),
}


def shown(modality: str, folder: Path, **options: object) -> Path:
    """The built-in recipe as a file."""
    adapter = create(modality, **options)
    assert isinstance(adapter, BaseAdapter)
    file = folder / "recipe.yaml"
    file.write_text(recipe_text(adapter.shown_operations(), volumes=False, command="x"))
    return file


def write(folder: Path, *entries: dict[str, object], **root: object) -> Path:
    """A pipeline file of these entries."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"transform": {PICTURE_KEY: "Compose", "transforms": list(entries), **root}}))
    return file


def entry(name: str, p: float = 1.0, **arguments: object) -> dict[str, object]:
    return {PICTURE_KEY: name, "p": p, **arguments}


@pytest.mark.parametrize("case", CASES)
def test_the_shown_recipe_gives_the_built_in_views(case, tmp_path):
    modality, options, source = CASES[case]
    file = shown(modality, tmp_path, **{**options, **SIZES})
    of_recipe = {"recipe", "stain_sigma"}
    plain = {name: value for name, value in options.items() if name not in of_recipe}
    own, filed = create(modality, **options, **SIZES), create(modality, **plain, **SIZES, augment=file)
    changed = 0
    for seed in range(25):
        a, b = own.views(source(), rng(seed)), filed.views(source(), rng(seed))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        changed += len({round(float(view.double().mean()), 9) for view in a}) > 1
    assert changed == 25
    file.unlink()  # the content is part of the adapter
    again = from_description(filed.describe())
    assert again.describe() == filed.describe() and "augment" not in own.describe()["options"]
    assert torch.equal(again.views(source(), rng(3))[0], own.views(source(), rng(3))[0])


def test_a_description_reads_no_file():
    described = create("images").describe()
    described["options"]["augment"] = "/etc/passwd"
    with pytest.raises(UserError, match="instead of holding its content"):
        from_description(described)


def test_albumentations_reads_and_writes_the_file(tmp_path):
    pipeline = A.load(shown("histology", tmp_path), data_format="yaml")
    assert [one.get_class_fullname() for one in pipeline.transforms][:2] == ["lejepa.Symmetry", "lejepa.StainJitter"]
    mine = A.Compose([A.RandomRotate90(p=1.0), OURS["lejepa.StainJitter"](sigma=0.1, p=0.5), A.GaussianBlur(p=0.2)])
    A.save(mine, tmp_path / "saved.yaml", data_format="yaml")
    adapter = create("histology", augment=tmp_path / "saved.yaml", **SIZES)
    adapter.check_pipeline()
    assert adapter.describe()["options"]["augment"]["transform"]["transforms"][1] == {
        PICTURE_KEY: "lejepa.StainJitter",
        "sigma": 0.1,
        "stain": "he",
        "p": 0.5,
    }


def flips(change: object, count: int = 400) -> np.ndarray:
    """Whether a chain of a horizontal and a vertical flip did either, (count, 2)."""
    corner = np.zeros((8, 8, 1), np.uint8)
    corner[0, 0] = 255
    views = [change(corner, rng(seed)) for seed in range(count)]  # type: ignore[operator]
    return np.array([[view[:, -1].any(), view[-1].any()] for view in views])


def test_transforms_of_a_chain_draw_independently(tmp_path):
    chain = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    pipeline = PicturePipeline(A.Compose(chain).to_dict(), size=8)
    for change in (Seeded(chain), lambda image, generator: pipeline(image, generator, None)):
        drawn = flips(change)
        assert 0.42 < drawn.mean(axis=0).min() and drawn.mean(axis=0).max() < 0.58
        assert 0.42 < (drawn[:, 0] == drawn[:, 1]).mean() < 0.58  # set_random_seed would give 1
        assert np.array_equal(drawn, flips(change))


def test_python_draws_come_from_the_same_generator():
    stream = _Stream()

    def drawn(seed: int) -> list[float]:
        stream.follow(rng(seed))
        return [
            stream.random(),
            stream.gauss(0, 1),
            stream.randint(0, 10**20),
            stream.choice(range(99)),
            stream.random(),
        ]

    assert drawn(1) == drawn(1) != drawn(2)  # gauss keeps half of a pair, which must not reach the next view
    stream.follow(rng(0))
    bits = np.array([stream.getrandbits(3) for _ in range(4000)])
    assert np.abs(np.bincount(bits, minlength=8) / 500 - 1).max() < 0.2
    numbers = np.array([stream.randrange(10) for _ in range(4000)])
    assert np.abs(np.bincount(numbers, minlength=10) / 400 - 1).max() < 0.2


def library() -> list[str]:
    """Transforms of albumentations that need nothing but an image."""
    found = []
    for name, kind in SERIALIZABLE_REGISTRY.items():
        if "." in name or name in REFUSED or not issubclass(kind, A.BasicTransform):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind(p=1.0)(image=images.scene(32, 32))
        except Exception:
            continue
        found.append(name)
    return found


def test_every_transform_of_the_library_draws_from_the_view_alone():
    """A transform with a random state of its own elsewhere would differ between workers and after a restart."""
    names, image = library(), images.scene(32, 32)
    assert len(names) > 60
    wrong = []
    for name in names:
        content = {"transform": {PICTURE_KEY: "Compose", "transforms": [entry(name)]}}
        (transform,) = build_transforms(content).transforms
        one = Seeded([transform])
        first = one(image, rng(3))
        random.seed(name)
        np.random.seed(len(name))
        cv2.setRNGSeed(len(name))
        one(image, rng(4))
        if not np.array_equal(first, one(image, rng(3))):
            wrong.append(name)
    assert wrong == []


ERRORS = [
    ([entry("HorizontalFlp")], r"mine\.yaml, entry 1 \(HorizontalFlp\).*Did you mean HorizontalFlip\?"),
    (
        [entry("Mirror"), entry("lejepa.StainJiter")],
        r"entry 2 \(lejepa\.StainJiter\).*Did you mean lejepa\.StainJitter",
    ),
    ([entry("StainJitter")], r"entry 1 \(StainJitter\).*Did you mean lejepa\.StainJitter\?"),
    ([entry("os.system")], r"entry 1 \(os\.system\): there is no such transform"),
    (
        [entry("lejepa.Blur", sigma=[2, 1])],
        r"entry 1 \(lejepa\.Blur\).*smaller number first.*lejepa\.Blur has p, sigma",
    ),
    ([entry("lejepa.Blur", radius=3)], r"radius.*lejepa\.Blur has p, sigma"),
    ([entry("GaussianBlur", sigma=3)], r"entry 1 \(GaussianBlur\): Argument\(s\) 'sigma' are not valid"),
    ([entry("GaussianBlur", blur_limit="wide")], r"entry 1 \(GaussianBlur\).*blur_limit"),
    ([{PICTURE_KEY: "HorizontalFlip"}], r"entry 1 \(HorizontalFlip\) has no p"),
    ([{"name": "HorizontalFlip"}], rf"entry 1: {PICTURE_KEY} is missing"),
    ([entry("OneOf", transforms=[entry("Blur"), entry("Blurr")])], r"entry 1\.2 \(Blurr\).*Did you mean Blur\?"),
    ([entry("Normalize")], r"\(Normalize\) has no place.*the encoder normalises"),
    ([entry("ToTensorV2")], r"\(ToTensorV2\).*tensors by themselves"),
    ([entry("TextImage", font_path="/usr/share/font.ttf")], r"\(TextImage\) names a file"),
    ([entry("lejepa.Dust")], r"\(lejepa\.Dust\) works on flux.*lejepa\.AsinhStretch"),
    ([entry("HorizontalFlip"), entry("lejepa.AsinhStretch")], r"entry 1 \(HorizontalFlip\) cannot work on flux"),
    ([entry("lejepa.AsinhStretch"), entry("lejepa.Seeing")], r"entry 2 \(lejepa\.Seeing\) works on flux.*before it"),
    ([entry("lejepa.AsinhStretch", p=0.5)], r"must always happen"),
]


@pytest.mark.parametrize(("entries", "said"), ERRORS, ids=range(len(ERRORS)))
def test_an_error_names_file_entry_and_remedy(entries, said, tmp_path):
    if entries[0].get(PICTURE_KEY) == "Mirror":
        entries = [entry("lejepa.Mirror"), *entries[1:]]
    with pytest.raises(PipelineError, match=said) as caught:
        create("images", augment=write(tmp_path, *entries))
    assert caught.value.remedy and str(tmp_path) not in str(caught.value)


def test_files_that_are_no_pipeline(tmp_path):
    with pytest.raises(PipelineError, match=r"no pipeline file .*gone\.yaml.*--show"):
        create("images", augment=tmp_path / "gone.yaml")
    for text, said in (
        ("a: [", "cannot be read as YAML"),
        ("- 1", "is no pipeline"),
        ("transform: 3", "is no pipeline"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("transform: {a: 2020-01-01}", "something else than text"),
        ("transform: {a: .nan}", "something else than text"),
        ("a: " + "b" * 2**20, "larger than 1 MiB"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(PipelineError, match=said):
            create("images", augment=tmp_path / "bad.yaml")


FIT = [
    (
        "images",
        {"channels": 5},
        entry("HueSaturationValue"),
        r"entry 1 \(HueSaturationValue\).*48|24.*5 channels, uint8",
    ),
    ("images", {"channels": 2}, entry("ToGray"), r"entry 1 \(ToGray\).*2 channels"),
    ("images", {}, entry("RandomResizedCrop", size=[48, 48]), r"gives 48 x 48 x 3 uint8.*Views here are 24 x 24"),
    ("images", {}, entry("ToFloat"), r"gives 24 x 24 x 3 float32.*uint8"),
    ("images", {}, entry("lejepa.RicianNoise"), r"entry 1 \(lejepa\.RicianNoise\).*takes float32"),
    ("images", {}, entry("lejepa.AsinhStretch"), r"takes calibrated flux, and these are pictures"),
    ("mri", {}, entry("lejepa.StainJitter"), r"takes \(H, W, 3\) uint8 RGB.*1 channel, float32"),
    ("histology", {}, entry("MaskDropout"), r"entry 1 \(MaskDropout\)"),
    (
        "galaxy",
        {**FLUX, "bands": "g,r,i,z,Y", "scales": (1,) * 5},
        entry("ToSepia"),
        r"\(ToSepia\).*5 channels, float32",
    ),
]


@pytest.mark.parametrize(("modality", "options", "one", "said"), FIT, ids=range(len(FIT)))
def test_a_pipeline_that_does_not_fit_the_views_is_refused_before_a_scan(modality, options, one, said, tmp_path):
    adapter = create(modality, **SIZES, **options, augment=write(tmp_path, one))
    with pytest.raises(PipelineError, match=said):
        adapter.check_pipeline()


def test_library_transforms_come_after_the_stretch(tmp_path):
    """Flux is far above 1, where albumentations would cut it; without lejepa.AsinhStretch it is stretched first."""
    flux = (20 * galaxy.source(64)).astype(np.float32)
    implied = create("galaxy", **FLUX, **SIZES, augment=write(tmp_path, entry("RandomBrightnessContrast")))
    named = create(
        "galaxy",
        **FLUX,
        **SIZES,
        augment=write(tmp_path, entry("lejepa.AsinhStretch", vary=0), entry("RandomBrightnessContrast")),
    )
    for adapter in (implied, named):
        adapter.check_pipeline()
        assert all(0 <= view.min() and view.max() <= 1 for view in adapter.views(flux, rng()))
    assert torch.equal(implied.views(flux, rng(1))[0], named.views(flux, rng(1))[0])
    assert isinstance(sky.AsinhStretch(), PictureOperation)


def test_a_failing_step_is_no_bad_file(tmp_path):
    """A ValueError would count as a damaged image, which training replaces."""
    adapter = create("images", channels=5, augment=write(tmp_path, entry("HueSaturationValue")), **SIZES)
    with pytest.raises(PipelineError, match=r"mine\.yaml.*5 channels"):
        adapter.views(images.scene(60, 60, 5), rng())


def test_missing_sequences_stay_black(tmp_path):
    adapter = create("mri", sequences=("T1w", "T2w"), augment=write(tmp_path, entry("GaussNoise")), **SIZES)
    adapter.check_pipeline()
    image = rng().random((24, 24, 2), dtype=np.float32)
    image[..., 1] = 0
    out = adapter.pipeline(24)(image, rng(), None)
    assert out[..., 1].max() == 0 and not np.array_equal(out[..., 0], image[..., 0])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), 1),
        (("HorizontalFlip",), 2),
        (("HorizontalFlip", "VerticalFlip"), 4),
        (("D4",), 8),
        (("lejepa.Symmetry",), 8),
    ],
)
def test_averaged_views_are_no_more_than_training_saw(names, expected, tmp_path):
    file = write(tmp_path, *map(entry, names))
    assert create("histology", augment=file).most_views == expected
    assert create("images", augment=file).most_views == min(2, expected)
    assert symmetries(None, usual=8) == 8


def test_options_of_the_recipe_are_refused_beside_a_file(tmp_path):
    file = write(tmp_path, entry("HorizontalFlip", 0.5))
    for modality, options in (("images", {"recipe": "natural"}), ("histology", {"stain_sigma": 0.2})):
        with pytest.raises(Exception, match=f"{next(iter(options))} would change the built-in recipe"):
            create(modality, augment=file, **options)


class Bands(BaseAdapter):
    """A plug-in that says what happens to a view and leaves the crop to us."""

    name, suffixes = "bands", (".npy",)

    @property
    def spec(self):
        return self.make_spec(channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)

    def read(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        return images.scene(60, 60, 5, dtype=np.float32)

    def operations(self):
        return [OURS["lejepa.Mirror"].kind(p=0.5)]


class Code(Bands):
    """A plug-in that makes its views in code."""

    def augment(self, kind, size):
        return lambda source, rng: source[:size, :size]


def test_plug_ins_take_pipelines(tmp_path):
    source = images.scene(60, 60, 5, dtype=np.float32)
    assert Bands(**SIZES).views(source, rng())[0].shape == (5, 48, 48)
    for kind in (Bands, Code):
        adapter = kind(augment=write(tmp_path, entry("GaussNoise")), **SIZES)
        views = adapter.views(source, rng())
        assert [tuple(view.shape[1:]) for view in views] == [(48, 48)] * 2 + [(24, 24)] * 2
    with pytest.raises(Exception, match="makes its views in code"):
        Code().shown_operations()


def test_docs_list_every_operation():
    text = DOCS.read_text()
    assert [name for name in PictureOperation.named if f"`{name}`" not in text] == []
