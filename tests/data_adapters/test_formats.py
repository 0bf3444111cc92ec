"""A format of a lab's own is its reader and one entry in the table of its modality; worker processes know it, too."""

from pathlib import Path

import numpy as np
import pytest

import data_adapters
from data_adapters.errors import BadFileError
from data_adapters.formats import FormatTable
from data_adapters.images.formats import FORMATS, ImageFormat
from data_adapters.scan import scan_archive
from tests.data.histology import he_picture
from tests.data.mri import phantom

OPEN = """
import numpy as np

def array_of(path):
    with path.open("rb") as stream:
        return np.load(stream, allow_pickle=False)
"""
IMAGES = """
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.images.formats import ImageFormat
from data_adapters.raster import RasterInfo

def info(path):
    array = array_of(path)
    return RasterInfo(width=array.shape[1], height=array.shape[0], channels=array.shape[2], dtype=array.dtype)

class Lab(ImagesAdapter):
    formats = ImagesAdapter.formats.adding(ImageFormat(suffixes=(".lab",), info=info, read=array_of))
    suffixes = formats.suffixes
"""
GALAXY = """
from data_adapters.galaxy.adapter import GalaxyAdapter
from data_adapters.galaxy.formats import CutoutFormat
from data_adapters.galaxy.metadata import Cutout
from data_adapters.galaxy.metadata import CutoutFile

def inspect(path, bands):
    height, width, count = array_of(path).shape
    place = Cutout(facts={"ra": 150.0, "dec": 2.0})
    return CutoutFile(kind="flux", planes="gr", count=count, width=width, height=height, bits=32, images=[place])

def read(path, item, bands, named):
    return array_of(path)

class Lab(GalaxyAdapter):
    formats = GalaxyAdapter.formats.adding(
        CutoutFormat(suffixes=(".lab",), kind="flux", inspect=inspect, read=read)
    )
    suffixes = formats.suffixes
"""
MRI = """
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.formats import VolumeFormat
from data_adapters.mri.geometry import VolumeHeader
from data_adapters.mri.geometry import canonical_grid
from data_adapters.mri.geometry import to_ras

def read_header(path, *, volume, sides_matter):
    return VolumeHeader(grid=canonical_grid(array_of(path).shape, np.eye(4)), bits=16, files=(str(path),))

def load(path, *, volume):
    return to_ras(array_of(path).astype(np.float32), np.eye(4))

class Lab(MRIAdapter):
    formats = MRIAdapter.formats.adding(VolumeFormat(suffixes=(".lab",), read_header=read_header, load=load))
    suffixes = formats.suffixes
"""
TILES = """
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.histology.formats import TileFormat

def size(path, grey):
    return array_of(path).shape[1::-1]

def read(path, grey):
    return array_of(path)

class Lab(HistologyAdapter):
    formats = HistologyAdapter.formats.adding(TileFormat(suffixes=(".lab",), size=size, read=read))
    suffixes = formats.suffixes
"""
SLIDES = """
from PIL import Image
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.histology.formats import SlideFormat

class Slide:
    level_count, level_downsamples = 1, (1.0,)
    properties = {"openslide.vendor": "lab", "openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}

    def __init__(self, path):
        self.picture = Image.fromarray(array_of(path))
        self.dimensions, self.level_dimensions = self.picture.size, (self.picture.size,)

    def get_best_level_for_downsample(self, downsample):
        return 0

    def read_region(self, corner, level, size):
        x, y = corner
        return self.picture.crop((x, y, x + size[0], y + size[1])).convert("RGBA")

class Lab(HistologyAdapter):
    formats = HistologyAdapter.formats.adding(SlideFormat(suffixes=(".lab",), reader="lab", open=Slide))
    suffixes = formats.suffixes
"""


def flux() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (40, 44, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("plugin", "array", "options"),
    [
        (IMAGES, he_picture(width=64, height=48)[0], {}),
        (GALAXY, flux(), {"scales": (1.0, 1.0), "bands": "g,r"}),
        (MRI, phantom(), {}),
        (TILES, he_picture(width=64, height=48)[0], {}),
        (SLIDES, he_picture(width=900, height=700)[0], {"global_size": 64, "local_size": 32}),
    ],
    ids=["images", "galaxy", "mri", "tiles", "slides"],
)
def test_a_format_of_ones_own_is_a_reader_and_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, array: np.ndarray, options: dict[str, object]
) -> None:
    (tmp_path / "lab.py").write_text(OPEN + plugin)
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    for name in ("a/one.lab", "a/two.LAB"):
        with open(name, "wb") as stream:
            np.save(stream, array)
    Path("a/other.lob").write_bytes(b"nothing that is known")
    adapter = data_adapters.create("./lab.py:Lab", **options)
    found = scan_archive(adapter, Path("a"), workers=1)
    assert [Path(one.uri).name for one in found.refused] == ["other.lob"]
    assert ".lab" in found.refused[0].remedy
    assert len(found) == 2
    for record in found.manifest.records():
        adapter.verify(record)
        views = adapter.views(adapter.read(record, np.random.default_rng(0)), np.random.default_rng(0))
        assert len(views) == adapter.spec.n_views
        pixels = adapter.prepare(record)
        assert len(pixels) and pixels.shape[1] == adapter.spec.channels
    name = type(adapter).__mro__[1].name
    (elsewhere,) = data_adapters.create(name).scan(Path("a/one.lab"))  # the modality itself is as before
    assert elsewhere.reason == f"not a format that the {name} adapter reads"


def test_the_longest_suffix_decides_and_none_is_taken_twice() -> None:
    one, two = FORMATS.formats
    table = FormatTable(
        ImageFormat(suffixes=(".gz",), info=one.info, read=one.read),
        ImageFormat(suffixes=(".nii.gz", ".nii"), info=two.info, read=two.read),
    )
    assert table.suffixes == (".gz", ".nii.gz", ".nii")
    assert table.of(Path("A.NII.GZ")).read is two.read and table.of(Path("a.tar.gz")).read is one.read
    with pytest.raises(BadFileError) as error:
        table.of(Path("a.png"))
    assert ".nii.gz" in error.value.remedy
    with pytest.raises(ValueError, match="two formats"):
        table.adding(one, ImageFormat(suffixes=(".gz",), info=one.info, read=one.read))
    for wrong in ("gz", ".GZ"):  # would never be found
        with pytest.raises(ValueError, match="lower case"):
            table.adding(ImageFormat(suffixes=(wrong,), info=one.info, read=one.read))
