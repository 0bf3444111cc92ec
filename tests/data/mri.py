"""Small MRI files in real formats: one asymmetric phantom, as NIfTI, MGH, NRRD, MetaImage and DICOM."""

import bz2
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

SHAPE = (24, 30, 20)  # RAS voxels
SPACING = (1.0, 1.25, 2.0)  # mm
UID_PREFIX = "1.2.826.0.1.3680043.10.1."

# How a scanner lays out a slice: for each plane (slice, row, column) axis of RAS, rows and columns reversed.
LAYOUT = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
ORIENTATION = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
}


def phantom(*, seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A head of int16 in RAS order: skull, brain, noise in air, and one bright lesion right, anterior and superior."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.9) ** 2)
    head = np.where(radius < 1, 900.0, 0.0)
    brain = radius < 0.8
    head[brain] = (500 + 150 * np.sin(4 * x + seed) * np.cos(5 * y) + 60 * z)[brain]
    head[(x - 0.3) ** 2 + (y - 0.35) ** 2 + (z - 0.3) ** 2 < 0.03] = 1300
    return (head + np.abs(rng.normal(0, 12, tuple(shape)))).astype(np.int16)


def affine(spacing: Sequence[float] = SPACING) -> np.ndarray:
    """RAS affine with its origin in the first voxel."""
    return np.diag([*spacing, 1.0])


def nifti(
    array: np.ndarray, *, axes: str = "RAS", spacing: Sequence[float] = SPACING, kind: Any = nib.Nifti1Image
) -> Any:
    """An image of `kind` that stores the RAS `array` along `axes`."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    stored = nib.orientations.apply_orientation(array, turn)
    return kind(stored, affine(spacing) @ nib.orientations.inv_ornt_aff(turn, array.shape[:3]))


def write_nifti(path: Path, array: np.ndarray, **options: Any) -> Path:
    """Save `nifti(array, ...)` under `path`; the suffix decides about compression and pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti(array, **options), path)
    return path


def stored(array: np.ndarray, axes: str, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The RAS `array` as kept along `axes`, and its affine in LPS mm."""
    image = nifti(array, axes=axes, spacing=spacing)
    return np.asanyarray(image.dataobj), np.diag([-1, -1, 1, 1]) @ image.affine


def write_nrrd(
    path: Path,
    array: np.ndarray,
    *,
    axes: str = "RAS",
    spacing: Sequence[float] = SPACING,
    space: str = "left-posterior-superior",
    encoding: str = "gzip",
    big: bool = False,
    **fields: str,
) -> Path:
    """An NRRD file as 3D Slicer writes it; `.nhdr` gets a data file beside it. `fields` override or (empty) remove."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept, affine = stored(array, axes, spacing)
    signs = {"left-posterior-superior": (1, 1, 1), "RAS": (-1, -1, 1), "left-anterior-superior": (1, -1, 1)}
    affine = np.diag([*signs.get(space, (1, 1, 1)), 1]) @ affine
    vectors = [f"({','.join(repr(float(v)) for v in affine[:3, axis])})" for axis in range(3)]
    content = kept.astype(kept.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    numbers = " ".join(map(str, kept.ravel(order="F").tolist())).encode()
    written = {"raw": content, "gzip": gzip.compress(content), "bzip2": bz2.compress(content), "ascii": numbers}
    data = written.get(encoding, content)
    values = {
        "type": {"int16": "short", "float32": "float", "float64": "double", "uint8": "uchar"}[str(kept.dtype)],
        "dimension": str(kept.ndim),
        "space": space,
        "sizes": " ".join(map(str, kept.shape)),
        "space directions": " ".join(vectors + ["none"] * (kept.ndim - 3)),
        "kinds": " ".join(["domain"] * 3 + ["list"] * (kept.ndim - 3)),
        "endian": "big" if big else "little",
        "encoding": encoding,
        "space origin": f"({','.join(repr(float(v)) for v in affine[:3, 3])})",
    } | {key.replace("_", " "): value for key, value in fields.items()}
    if path.suffix == ".nhdr" and "data file" not in values:
        values["data file"] = path.with_suffix(".raw").name
        path.with_suffix(".raw").write_bytes(data)
        data = b""
    lines = ["NRRD0004", "# made by a test", *(f"{key}: {value}" for key, value in values.items() if value)]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + data)
    return path


def write_metaimage(
    path: Path,
    array: np.ndarray,
    *,
    axes: str = "RAS",
    spacing: Sequence[float] = SPACING,
    compress: bool = False,
    big: bool = False,
    **fields: str,
) -> Path:
    """A MetaImage file as ITK writes it; `.mhd` gets a data file beside it. `fields` override or (empty) remove."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept, affine = stored(array, axes, spacing)
    n = kept.ndim
    directions, origin, sizes = np.eye(n), np.zeros(n), np.ones(n)
    sizes[:3] = np.linalg.norm(affine[:3, :3], axis=0)
    directions[:3, :3], origin[:3] = (affine[:3, :3] / sizes[:3]).T, affine[:3, 3]
    content = kept.astype(kept.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    data = zlib.compress(content) if compress else content
    values = {
        "ObjectType": "Image",
        "NDims": str(n),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(big),
        "CompressedData": str(compress),
        "TransformMatrix": " ".join(repr(float(v)) for v in directions.ravel()),
        "Offset": " ".join(repr(float(v)) for v in origin),
        "CenterOfRotation": " ".join(["0"] * n),
        "ElementSpacing": " ".join(repr(float(v)) for v in sizes),
        "DimSize": " ".join(map(str, kept.shape)),
        "ElementType": {"int16": "MET_SHORT", "float32": "MET_FLOAT", "uint8": "MET_UCHAR"}[str(kept.dtype)],
    } | fields
    name = values.pop("ElementDataFile", "LOCAL" if path.suffix == ".mha" else path.with_suffix(".zraw").name)
    if path.suffix == ".mhd":
        path.with_suffix(".zraw").write_bytes(data)
        data = b""
    lines = [f"{key} = {value}\n" for key, value in values.items() if value] + [f"ElementDataFile = {name}\n"]
    path.write_bytes("".join(lines).encode() + data)
    return path


def dataset(image: np.ndarray, *, series: int = 1, instance: int = 1, patient: str = "P1", **tags: Any) -> Dataset:
    """A classic MR image of uint16 (H, W) pixels; `tags` override or, with None, remove attributes."""
    data = Dataset()
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = UID(f"{UID_PREFIX}{series}.{instance}")
    data.StudyInstanceUID = UID(f"{UID_PREFIX}9")
    data.SeriesInstanceUID = UID(f"{UID_PREFIX}{series}")
    data.FrameOfReferenceUID = UID(f"{UID_PREFIX}8")
    data.PatientID, data.PatientName = patient, "Doe^Jane"
    data.Modality, data.ImageType, data.Manufacturer = "MR", ["ORIGINAL", "PRIMARY", "M"], "Made"
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.InstanceNumber = instance
    data.PixelData = image.astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def save_dicom(path: Path, data: Dataset, *, compress: bool = False) -> Path:
    """Write with preamble and file meta; RLE if `compress`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if compress:
        data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path


def slice_images(array: np.ndarray, plane: str) -> np.ndarray:
    """(n, rows, columns) as a scanner shows the RAS `array`."""
    return array.transpose(LAYOUT[plane])[:, ::-1, ::-1]


def slice_geometry(index: int, plane: str, *, spacing: Sequence[float], shape: Sequence[int]) -> dict[str, Any]:
    """Position (LPS, mm) of the first pixel, orientation and pixel spacing of slice `index`."""
    slice_axis, row_axis, column_axis = LAYOUT[plane]
    voxel = [0, 0, 0]
    voxel[slice_axis], voxel[row_axis], voxel[column_axis] = index, shape[row_axis] - 1, shape[column_axis] - 1
    right, anterior, superior = (v * mm for v, mm in zip(voxel, spacing, strict=True))
    return {
        "ImagePositionPatient": [-right, -anterior, superior],
        "ImageOrientationPatient": ORIENTATION[plane],
        "PixelSpacing": [spacing[row_axis], spacing[column_axis]],
        "SliceThickness": spacing[slice_axis],
    }


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    plane: str = "axial",
    spacing: Sequence[float] = SPACING,
    seed: int = 1,
    series: int = 1,
    compress: bool = False,
    suffix: str = ".dcm",
    **tags: Any,
) -> list[Path]:
    """A classic series whose file names and instance numbers are shuffled and say nothing about the order."""
    images = slice_images(array, plane)
    names = np.random.default_rng(seed).permutation(len(images))
    paths = []
    for index, image in enumerate(images):
        geometry = slice_geometry(index, plane, spacing=spacing, shape=array.shape)
        data = dataset(image, series=series, instance=int(names[index]) + 1, **{**geometry, **tags})
        paths.append(save_dicom(folder / f"IM{names[index]:04d}{suffix}", data, compress=compress))
    return paths


def write_series_along(
    folder: Path, array: np.ndarray, *, axes: str, spacing: Sequence[float] = SPACING, seed: int = 1
) -> list[Path]:
    """A series whose columns, rows and slices run along `axes` of RAS (such as "PSR"), in shuffled files."""
    kept, affine = stored(array, axes, spacing)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / sizes
    order, paths = np.random.default_rng(seed).permutation(kept.shape[2]), []
    for name, index in enumerate(order):
        geometry = {
            "ImagePositionPatient": [float(v) for v in affine[:3, 3] + index * affine[:3, 2]],
            "ImageOrientationPatient": [float(v) for v in (*cosines[:, 0], *cosines[:, 1])],
            "PixelSpacing": [float(sizes[1]), float(sizes[0])],
        }
        data = dataset(kept[:, :, index].T, series=3, instance=name + 1, **geometry)
        paths.append(save_dicom(folder / f"IM{name:04d}", data))
    return paths


def write_enhanced(path: Path, array: np.ndarray, *, spacing: Sequence[float] = SPACING, seed: int = 2) -> Path:
    """An Enhanced MR image with axial frames in shuffled order."""
    images = slice_images(array, "axial")
    order = np.random.default_rng(seed).permutation(len(images))
    data = dataset(images[0], series=7, instance=1)
    data.SOPClassUID = EnhancedMRImageStorage
    data.NumberOfFrames = len(images)
    shared = Dataset()
    measures, plane_orientation = Dataset(), Dataset()
    geometry = slice_geometry(0, "axial", spacing=spacing, shape=array.shape)
    measures.PixelSpacing, measures.SliceThickness = geometry["PixelSpacing"], geometry["SliceThickness"]
    plane_orientation.ImageOrientationPatient = geometry["ImageOrientationPatient"]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane_orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, position, content = Dataset(), Dataset(), Dataset()
        place = slice_geometry(int(index), "axial", spacing=spacing, shape=array.shape)
        position.ImagePositionPatient = place["ImagePositionPatient"]
        content.StackID, content.InStackPositionNumber = "1", int(index) + 1
        content.DimensionIndexValues = [1, int(index) + 1]
        frame.PlanePositionSequence = [position]
        frame.FrameContentSequence = [content]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    organisation = generate_uid(entropy_srcs=["organisation"])
    holder = Dataset()
    holder.DimensionOrganizationUID = organisation
    data.DimensionOrganizationSequence = [holder]
    data.DimensionIndexSequence = [
        _dimension(organisation, "StackID"),
        _dimension(organisation, "InStackPositionNumber"),
    ]
    data.PixelData = images[order].astype("<u2").tobytes()
    return save_dicom(path, data)


def _dimension(organisation: UID, keyword: str) -> Dataset:
    index = Dataset()
    index.DimensionOrganizationUID = organisation
    index.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(keyword)
    index.FunctionalGroupPointer = pydicom.datadict.tag_for_keyword("FrameContentSequence")
    return index
