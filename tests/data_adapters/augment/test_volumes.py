"""Pipelines of volumes in files: the same views as the built-in recipe, an allow-list, and independent draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_adapters import create, from_description
from data_adapters.augment.operations import VolumeOperation
from data_adapters.mri.cube import FULL
from data_adapters.mri.cube_adapter import ChannelCubes, MRI3DAdapter
from data_adapters.mri.cube_views import CubeSource
from data_adapters.pipeline_file import VOLUME_KEY, PipelineError, recipe_text
from data_adapters.volume_pipeline import CONTAINERS, LIBRARY, VolumePipeline

SIZES = {"global_size": 24, "local_size": 16, "n_local": 2}
DOCS = Path(__file__).parents[3] / "docs" / "augmentation.md"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def source(seed: int = 0) -> CubeSource:
    return CubeSource(voxels=(rng(seed).random((36, 40, 38)) * FULL).astype(np.uint16), mirror=True)


def write(folder: Path, *entries: dict[str, object]) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"transforms": list(entries)}))
    return file


def entry(name: str, **arguments: object) -> dict[str, object]:
    return {VOLUME_KEY: name, **arguments}


def test_the_shown_recipe_gives_the_built_in_views(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(MRI3DAdapter().shown_operations(), volumes=True, command="x"))
    own, filed = create("mri3d", **SIZES), create("mri3d", augment=file, **SIZES)
    filed.check_pipeline()
    file.unlink()
    again = from_description(filed.describe())
    for seed in range(25):
        views = [adapter.views(source(), rng(seed)) for adapter in (own, filed, again)]
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*views, strict=True))


def test_channels_share_draws_and_missing_ones_stay_black(tmp_path):
    file = write(tmp_path, entry("RandGaussianNoise", prob=1.0, std=0.1), entry("lejepa.Gamma"))
    adapter = create("mri3d", sequences=("T1w", "T2w", "FLAIR"), augment=file, **SIZES)
    adapter.check_pipeline()
    cubes = ChannelCubes(channels=(source(), None, source()), mirror=False, dropout=0)
    for view in adapter.views(cubes, rng()):
        assert view.shape[0] == 3 and view[1].abs().max() == 0 and view[0].max() > 0


def test_transforms_draw_independently_and_from_the_view_alone():
    entries = [entry("RandFlip", prob=0.5, spatial_axis=0), entry("RandFlip", prob=0.5, spatial_axis=1)]
    corner = np.zeros((8, 8, 8), np.float32)
    corner[0, 0] = 1
    for steps in (entries, [entry("Compose", transforms=entries)]):
        pipeline = VolumePipeline({"transforms": steps}, size=8)

        def drawn(pipeline: VolumePipeline = pipeline) -> np.ndarray:
            views = [pipeline([corner], rng(seed), None)[0] for seed in range(400)]
            return np.array([[view[-1].any(), view[:, -1].any()] for view in views])

        flips = drawn()
        assert 0.42 < flips.mean(axis=0).min() and flips.mean(axis=0).max() < 0.58
        assert 0.42 < (flips[:, 0] == flips[:, 1]).mean() < 0.58
        np.random.seed(1)
        torch.manual_seed(1)
        assert np.array_equal(flips, drawn())


RANDOM = [
    entry("RandAffine", prob=1.0, rotate_range=[0.1], padding_mode="zeros"),
    entry("RandBiasField", prob=1.0),
    entry("RandGibbsNoise", prob=1.0, alpha=[0.2, 0.6]),
    entry("Rand3DElastic", prob=1.0, sigma_range=[2, 3], magnitude_range=[5, 9], padding_mode="zeros"),
    entry("RandCoarseDropout", prob=1.0, holes=2, spatial_size=4),
    entry("RandHistogramShift", prob=1.0),
    entry("RandRicianNoise", prob=1.0, std=0.05),
    entry("RandSimulateLowResolution", prob=1.0),
    entry("RandGridDistortion", prob=1.0),
    entry("RandSmoothFieldAdjustContrast", prob=1.0, spatial_size=[16, 16, 16], rand_size=[4, 4, 4]),
    entry("OneOf", transforms=[entry("RandGaussianSmooth", prob=1.0), entry("lejepa.BiasField")]),
    entry(
        "SomeOf",
        num_transforms=1,
        transforms=[entry("RandGaussianNoise", prob=1.0), entry("RandShiftIntensity", prob=1.0, offsets=0.2)],
    ),
    entry("lejepa.OneOf", transforms=[entry("lejepa.Blur"), entry("lejepa.Gibbs")]),
]


@pytest.mark.parametrize("one", RANDOM, ids=lambda one: str(one[VOLUME_KEY]))
def test_library_transforms_follow_the_generator(one):
    pipeline = VolumePipeline({"transforms": [one]}, size=16)
    cube = np.linspace(0, 1, 16**3, dtype=np.float32).reshape(16, 16, 16)
    first = pipeline([cube], rng(3), None)[0]
    assert first.dtype == np.float32 and 0 <= first.min() and first.max() <= 1
    np.random.seed(0)
    torch.manual_seed(0)
    other = pipeline([cube], rng(4), None)[0]
    assert not np.array_equal(first, other) and np.array_equal(first, pipeline([cube], rng(3), None)[0])
    assert cube.max() == 1 and cube.min() == 0  # the source is not written into


def test_only_plain_transforms_of_arrays_may_be_named():
    for name in ("LoadImage", "SaveImage", "Lambda", "TorchVision", "RandFlipd", "RandomizableTransform", "DataStats"):
        assert name not in LIBRARY
    assert {"RandFlip", "RandAffine", "RandGaussianNoise", "RandBiasField", *CONTAINERS} <= set(LIBRARY)


ERRORS = [
    ([entry("RandFlop")], r"mine\.yaml, entry 1 \(RandFlop\).*Did you mean RandFlip\?"),
    ([entry("Gamma")], r"entry 1 \(Gamma\).*Did you mean lejepa\.Gamma\?"),
    ([entry("Lambda", func="$__import__('os').system('true')")], r"entry 1 \(Lambda\): there is no such transform"),
    ([entry("RandFlip", p=0.5)], r"\(RandFlip\): it has no argument p, but prob, spatial_axis"),
    ([entry("lejepa.Gamma", low=0.5)], r"\(lejepa\.Gamma\).*low.*lejepa\.Gamma has p, gamma"),
    ([{"name": "RandFlip"}], rf"entry 1: {VOLUME_KEY} is missing"),
    ([entry("OneOf", transforms=[entry("RandFlip"), entry("RandFlap")])], r"entry 1\.2 \(RandFlap\)"),
]


@pytest.mark.parametrize(("entries", "said"), ERRORS, ids=range(len(ERRORS)))
def test_an_error_names_file_entry_and_remedy(entries, said, tmp_path):
    with pytest.raises(PipelineError, match=said) as caught:
        create("mri3d", augment=write(tmp_path, *entries))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (entry("RandSpatialCrop", roi_size=[16, 16, 16], random_size=False), r"gives 1 x 16 x 16 x 16.*24 x 24 x 24"),
        (entry("SpatialPad", spatial_size=[20, 20, 20]), r"gives 1 x 20 x 20 x 20.*16 x 16 x 16"),
        (entry("RandCropByPosNegLabel", spatial_size=[8, 8, 8]), r"entry 1 \(RandCropByPosNegLabel\)"),
        (entry("Resize", spatial_size=[8, 8]), r"entry 1 \(Resize\)"),
    ],
)
def test_a_pipeline_that_does_not_fit_the_views_is_refused_before_a_scan(one, said, tmp_path):
    adapter = create("mri3d", augment=write(tmp_path, one), **SIZES)
    with pytest.raises(PipelineError, match=said):
        adapter.check_pipeline()


def test_pictures_and_volumes_have_files_of_their_own(tmp_path):
    volumes = write(tmp_path, entry("RandFlip", prob=0.5))
    pictures = tmp_path / "pictures.yaml"
    pictures.write_text("transform: {__class_fullname__: HorizontalFlip, p: 0.5}")
    with pytest.raises(PipelineError, match="this modality gives volumes"):
        create("mri3d", augment=pictures).check_pipeline()
    with pytest.raises(PipelineError, match="this modality gives pictures"):
        create("mri", augment=volumes).check_pipeline()


def test_docs_list_every_operation():
    text = DOCS.read_text()
    assert [name for name in VolumeOperation.named if f"`{name}`" not in text] == []
