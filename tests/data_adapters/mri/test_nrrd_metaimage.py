"""NRRD and MetaImage: right in every variant, refused where the header leaves something open."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.formats import FORMATS, load_file
from tests.data.mri import SPACING, phantom, write_metaimage, write_nrrd

SMALL = (9, 11, 10)


def read(path: Path, volume=None) -> np.ndarray:
    header = FORMATS.of(path).read_header(path, volume=volume, sides_matter=True)
    loaded = load_file(path, FORMATS, volume=volume)
    assert header.grid.size == loaded.array.shape and header.grid.spacing == pytest.approx(loaded.spacing, abs=1e-3)
    assert header.grid.spacing == pytest.approx(SPACING)
    return loaded.array


@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "left-anterior-superior"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize(("name", "big"), [("a.nrrd", False), ("a.nrrd", True), ("a.nhdr", False)])
def test_nrrd_variants(tmp_path, name, encoding, big, space):
    array = phantom(shape=SMALL)
    path = write_nrrd(tmp_path / name, array, encoding=encoding, big=big, space=space, axes="PIR")
    np.testing.assert_array_equal(read(path), array)


@pytest.mark.parametrize(("name", "big"), [("a.mha", False), ("a.mha", True), ("a.mhd", False)])
@pytest.mark.parametrize("compress", [False, True])
def test_metaimage_variants(tmp_path, name, compress, big):
    array = phantom(shape=SMALL)
    path = write_metaimage(tmp_path / name, array, compress=compress, big=big, axes="SLA")
    np.testing.assert_array_equal(read(path), array)


@pytest.mark.parametrize(("write", "name"), [(write_nrrd, "a.nhdr"), (write_metaimage, "a.mhd")])
def test_header_and_data_file_are_one_record(tmp_path, write, name):
    write(tmp_path / name, phantom())
    (record,) = MRIAdapter().scan(tmp_path)
    assert isinstance(record, Record) and len(record.meta["files"]) == 2
    MRIAdapter().verify(record)


@pytest.mark.parametrize(("write", "name"), [(write_nrrd, "a.nrrd"), (write_metaimage, "a.mha")])
def test_four_dimensions_need_a_choice(tmp_path, write, name):
    parts = [phantom(seed=0, shape=SMALL), phantom(seed=1, shape=SMALL)]
    path = write(tmp_path / name, np.stack(parts, axis=3))
    with pytest.raises(BadFileError, match="4-D"):
        read(path)
    np.testing.assert_array_equal(read(path, volume=1), parts[1])
    np.testing.assert_array_equal(read(path, volume="mean"), np.mean(parts, axis=0))


def test_nrrd_with_the_volumes_on_the_first_axis(tmp_path):
    parts = [phantom(seed=0, shape=SMALL), phantom(seed=1, shape=SMALL)]
    path = write_nrrd(tmp_path / "a.nrrd", np.stack(parts, axis=3))
    content = path.read_bytes()
    text = content[: content.index(b"\n\n") + 2].decode()
    vectors = text.split("space directions: ")[1].split("\n")[0]
    for old, new in {
        "sizes: 9 11 10 2": "sizes: 2 9 11 10",
        "kinds: domain domain domain list": "kinds: list domain domain domain",
        vectors: "none " + vectors.removesuffix(" none"),
    }.items():
        assert old in text
        text = text.replace(old, new)
    first = np.stack(parts).astype("<i2").tobytes(order="F")  # as diffusion series of 3D Slicer
    path.write_bytes(text.encode() + gzip.compress(first))
    np.testing.assert_array_equal(read(path, volume=1), parts[1])


@pytest.mark.parametrize(("unit", "mm"), [("um", 1e-3), ("\N{MICRO SIGN}m", 1e-3), ("cm", 10), ("m", 1000), ("mm", 1)])
def test_units_of_nrrd(tmp_path, unit, mm):
    sides = tuple(side / mm for side in SPACING)
    path = write_nrrd(
        tmp_path / "a.nrrd", phantom(shape=SMALL), spacing=sides, space_units=f'"{unit}" "{unit}" "{unit}"'
    )
    np.testing.assert_array_equal(read(path), phantom(shape=SMALL))


@pytest.mark.parametrize(("unit", "mm"), [("um", 1e-3), ("cm", 10), ("mm", 1), ("?", 1)])
def test_units_of_metaimage(tmp_path, unit, mm):
    sides = tuple(side / mm for side in SPACING)
    path = write_metaimage(tmp_path / "a.mha", phantom(shape=SMALL), spacing=sides, DistanceUnits=unit)
    np.testing.assert_array_equal(read(path), phantom(shape=SMALL))


def test_values_beyond_single_precision(tmp_path):
    huge = phantom(shape=SMALL).astype(np.float64) * 1e36
    path = write_nrrd(tmp_path / "a.nrrd", huge)
    assert refusal(path) == "values beyond single precision (above 3.4e38)"


def refusal(path: Path) -> str:
    """The reason that scan or verify gives."""
    (found,) = MRIAdapter().scan(path)
    if isinstance(found, Rejected):
        assert found.remedy
        return found.reason
    with pytest.raises(BadFileError) as error:
        MRIAdapter().verify(found)
    assert error.value.remedy and str(path.parent) not in error.value.cause + error.value.remedy
    return error.value.cause


NO_SIDE = "the file does not record its orientation"
NO_NRRD, NO_META = "not a readable NRRD header", "not a readable MetaImage header"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"space": ""}, NO_SIDE),
        ({"space": "scanner-xyz"}, NO_SIDE),
        ({"space_directions": ""}, NO_SIDE),
        ({"space_directions": "(0,0,0) (0,1,0) (0,0,1)"}, "unusable affine (voxel size or direction missing)"),
        ({"space_units": '"um" "um" "um"'}, "implausible voxel size (below 0.005 or above 30 mm)"),
        ({"space_units": '"cubit" "cubit" "cubit"'}, "distances in an unknown unit"),
        ({"type": "block"}, NO_NRRD),
        ({"encoding": "hex"}, NO_NRRD),
        ({"endian": ""}, NO_NRRD),
        ({"sizes": "24 30 21"}, "truncated or damaged data"),
        ({"sizes": "24 30 19"}, "more data than the header says"),
        ({"data_file": "../b.raw"}, "the header names a data file in another folder"),
        ({"data_file": "/etc/passwd"}, "the header names a data file in another folder"),
        ({"data_file": "gone.raw"}, "a file of the pair is missing"),
        ({"data_file": "a%03d.raw 1 20 1"}, "voxels in several data files"),
    ],
)
def test_nrrd_that_is_refused(tmp_path, fields, reason):
    (tmp_path / "b.raw").write_bytes(bytes(100))
    (tmp_path / "in").mkdir()
    assert refusal(write_nrrd(tmp_path / "in" / "a.nrrd", phantom(), **({"encoding": "raw"} | fields))) == reason


def test_nrrd_colour_and_vectors(tmp_path):
    array = np.stack([phantom(shape=SMALL)] * 3, axis=3)
    kinds = "domain domain domain {}"
    assert refusal(write_nrrd(tmp_path / "a.nrrd", array, kinds=kinds.format("RGB-color"))) == "colour (RGB) volume"
    path = write_nrrd(tmp_path / "b.nrrd", array, kinds=kinds.format("covariant-vector"))
    assert refusal(path) == "five dimensions (vectors or tensors)"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"TransformMatrix": ""}, NO_SIDE),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, NO_META),
        ({"ElementSpacing": "1 1 0"}, NO_META),
        ({"ElementSpacing": ""}, NO_SIDE),
        ({"ElementType": "MET_LONG"}, NO_META),
        ({"NDims": "2"}, NO_META),
        ({"ElementByteOrderMSB": "maybe", "BinaryDataByteOrderMSB": ""}, NO_META),
        ({"ObjectType": "Mesh"}, "MetaIO object that is no image"),
        ({"ElementNumberOfChannels": "6"}, "five dimensions (vectors or tensors)"),
        ({"ElementNumberOfChannels": "3", "ElementType": "MET_UCHAR"}, "colour (RGB) volume"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scaled intensities (ElementToIntensityFunction)"),
        ({"DimSize": "24 30 21"}, "truncated or damaged data"),
        ({"DimSize": "24 30 19"}, "more data than the header says"),
        ({"ElementDataFile": "../b.raw"}, "the header names a data file in another folder"),
        ({"ElementDataFile": "LIST"}, "voxels in several data files"),
        ({"ElementDataFile": "gone.raw"}, "a file of the pair is missing"),
    ],
)
def test_metaimage_that_is_refused(tmp_path, fields, reason):
    (tmp_path / "b.raw").write_bytes(bytes(100))
    assert refusal(write_metaimage(tmp_path / "in" / "a.mha", phantom(), **fields)) == reason


@pytest.mark.parametrize("kept", [0.3, 0.97])
@pytest.mark.parametrize("name", ["a.nrrd", "raw.nrrd", "a.mha", "packed.mha"])
def test_truncated(tmp_path, name, kept):
    if name.endswith("nrrd"):
        path = write_nrrd(tmp_path / name, phantom(), encoding="raw" if name[0] == "r" else "gzip")
    else:
        path = write_metaimage(tmp_path / name, phantom(), compress=name[0] == "p")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert refusal(path) == "truncated or damaged data"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_damaged_stream_and_foreign_text(tmp_path, name):
    write = write_nrrd if name.endswith("nrrd") else write_metaimage
    path = write(tmp_path / name, phantom(), **({} if write is write_nrrd else {"compress": True}))
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 255  # in the checksum
    path.write_bytes(bytes(raw))
    assert refusal(path) == "truncated or damaged data"
    path.write_text("dear reader\n" * 50)
    assert refusal(path) == (NO_NRRD if write is write_nrrd else NO_META)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    tilt=st.floats(-0.6, 0.6),
    name=st.sampled_from(["a.nrrd", "a.mha", "a.mhd", "a.nhdr"]),
    kind=st.sampled_from(["int16", "uint8", "float32"]),
    compressed=st.booleans(),
)
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(tmp_path, seed, tilt, name, kind, compressed):
    """The independent reader: voxel values, and the place of every voxel in space, oblique grids included."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed; it only checks our reader")
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray((rng.random((5, 6, 7)) * 200).astype(kind))
    axes = rng.permutation(3)
    turn = np.zeros((3, 3))
    turn[np.arange(3), axes] = rng.choice([-1.0, 1.0], 3)
    c, s = np.cos(tilt), np.sin(tilt)
    turn = turn @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    image.SetDirection(turn.ravel())
    image.SetSpacing(rng.uniform(0.5, 3, 3).tolist())
    image.SetOrigin(rng.uniform(-100, 100, 3).tolist())
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    header = FORMATS.of(tmp_path / name).read_header(tmp_path / name, volume=None, sides_matter=True)
    volume = load_file(tmp_path / name, FORMATS, volume=None)
    affine = np.array(header.grid.affine).reshape(3, 4)
    for _ in range(8):
        voxel = [int(rng.integers(n)) for n in volume.array.shape]
        place = np.diag([-1, -1, 1]) @ (affine[:, :3] @ voxel + affine[:, 3])
        index = image.TransformPhysicalPointToIndex(place.tolist())
        assert image.GetPixel(*index) == pytest.approx(float(volume.array[tuple(voxel)]), rel=1e-6)
    assert np.abs(affine[:, :3]).argmax(axis=0).tolist() == [0, 1, 2] and (np.diag(affine[:, :3]) > 0).all()
