"""Bad input is refused with a reason that says nothing about the patient; and which patient a file belongs to."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_adapters.errors import BadFileError
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.scan import scan_archive
from tests.data.mri import SPACING, nifti, phantom, write_nifti, write_series
from tests.data_adapters.refusals import reasons, reasons_of_readable


def test_four_dimensions(tmp_path):
    write_nifti(tmp_path / "a.nii", np.stack([phantom()] * 2, axis=3))
    assert reasons(tmp_path) == {"4-D: several volumes in one file"}
    assert reasons(tmp_path, volume=2) == {"4-D: fewer volumes than the option volume asks for"}


def test_one_volume_in_four_dimensions_is_read(tmp_path):
    write_nifti(tmp_path / "a.nii", phantom()[..., None])
    assert reasons_of_readable(tmp_path) == []


def test_vectors_and_colour_and_complex(tmp_path):
    vectors = np.stack([phantom()] * 3, axis=3)[:, :, :, None]
    nib.save(nib.Nifti1Image(vectors, np.eye(4)), tmp_path / "v.nii")
    assert reasons(tmp_path / "v.nii") == {"five dimensions (vectors or tensors)"}
    colour = np.zeros((9, 9, 9), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "c.nii")
    assert reasons(tmp_path / "c.nii") == {"colour (RGB) volume"}
    nib.save(nib.Nifti1Image(phantom().astype(np.complex64), np.eye(4)), tmp_path / "z.nii")
    assert reasons(tmp_path / "z.nii") == {"complex values"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "contains NaN or infinite values"),
        (np.inf, "contains NaN or infinite values"),
        (None, "empty: all values are equal"),
    ],
)
def test_unusable_values(tmp_path, value, reason):
    array = phantom().astype(np.float32)
    if value is None:
        array[:] = 7
    else:
        array[3, 4, 5] = value
    write_nifti(tmp_path / "a.nii.gz", array)
    assert reasons(tmp_path) == {reason}


def test_label_maps(tmp_path):
    write_nifti(tmp_path / "seg.nii.gz", (phantom() // 200).astype(np.uint8))
    assert reasons(tmp_path) == {"a mask or label map (at most 16 whole-numbered values)"}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_truncated_volumes(tmp_path, name, kept):
    path = write_nifti(tmp_path / name, phantom(), kind=nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    assert reasons(tmp_path) == {"truncated or damaged data"}


def test_wrong_checksum_is_found(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", phantom())
    raw = bytearray(gzip.decompress(path.read_bytes()))
    good = gzip.compress(bytes(raw))
    raw[5000] ^= 255
    # A stream that inflates without a fault, but whose checksum is that of other data.
    deflate = zlib.compressobj(wbits=-15)
    path.write_bytes(good[:10] + deflate.compress(bytes(raw)) + deflate.flush() + good[-8:])
    nib.load(path).get_fdata()  # nibabel sees nothing
    assert reasons(tmp_path) == {"truncated or damaged data"}


def test_voxel_sizes_that_disagree(tmp_path):
    image = nifti(phantom(), spacing=(1.3, 1.3, 10))
    image.header.set_sform(np.eye(4), code=1)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii")
    assert reasons(tmp_path) == {"voxel sizes of the header and the affine differ"}


def test_left_and_right_that_disagree(tmp_path):
    image = nifti(phantom())
    image.set_qform(np.diag([-1, 1.25, 2, 1]), code=1)
    image.set_sform(np.diag([1, 1.25, 2, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert reasons(tmp_path) == {"sform and qform disagree about left and right"}


def test_axes_that_disagree(tmp_path):
    image = nifti(phantom())
    image.set_qform(np.array([[0, 1.25, 0, 0], [0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]]), code=1)
    image.set_sform(np.diag([1, 1.25, 2, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert reasons(tmp_path) == {"sform and qform disagree about the axes"}


@pytest.mark.parametrize(
    ("offset", "layout", "values", "reason"),
    [
        (112, "<2f", (1, np.nan), "intensity scaling with an offset that is no number (scl_inter)"),
        (256, "<3f", (0, 1.01, 0), "unusable affine (sform or qform is no rotation, or no number)"),
        (68, "<h", (1002,), "a label map (by the header's intent code)"),
        (123, "<B", (5,), "an unknown unit of length (xyzt_units)"),
        (123, "<B", (1,), "implausible voxel size (below 0.005 or above 30 mm)"),
        (123, "<B", (3,), "implausible voxel size (below 0.005 or above 30 mm)"),
    ],
)
def test_headers_of_nifti_that_are_refused(tmp_path, offset, layout, values, reason):
    image = nifti(phantom())
    image.set_qform(image.affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into(layout, raw, offset, *values)
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert reasons(tmp_path) == {reason}
    (found,) = MRIAdapter().scan(tmp_path)
    assert found.remedy


def test_slices_on_the_fourth_axis(tmp_path):
    nib.save(nib.Nifti1Image(phantom()[:, :, None, :], np.eye(4)), tmp_path / "a.nii")
    assert reasons(tmp_path) == {"4-D: one slice on the third axis and several on the fourth"}


def test_values_beyond_single_precision(tmp_path):
    nib.save(nib.Nifti1Image(phantom().astype(np.float64) * 1e36, np.eye(4)), tmp_path / "a.nii")
    assert reasons(tmp_path) == {"values beyond single precision (above 3.4e38)"}


def test_what_stands_in_the_place_of_a_file(tmp_path):
    (tmp_path / "annex.nii.gz").symlink_to("../.git/annex/objects/xx/none")
    (tmp_path / "slice.dcm").symlink_to("nowhere")
    (tmp_path / "pointer.nii").write_text("/annex/objects/MD5E-s100--d41d8cd9.nii\n")
    (tmp_path / "lfs.dcm").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "resource.nii").write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (tmp_path / "nothing.dcm").write_bytes(b"")
    link, placeholder = "link whose target is missing", "a placeholder of git-annex or Git LFS without the content"
    assert {Path(item.uri).name: item.reason for item in MRIAdapter().scan(tmp_path)} == {
        "annex.nii.gz": "file whose content was not fetched (git-annex, DataLad)",
        "lfs.dcm": placeholder,
        "nothing.dcm": "an empty file (0 bytes)",
        "pointer.nii": placeholder,
        "resource.nii": "a macOS resource file (AppleDouble), no image",
        "slice.dcm": link,
    }
    # a whole scan gives the same, through its own processes
    refused = {Path(item.uri).name: item.reason for item in scan_archive(MRIAdapter(), tmp_path).refused}
    assert refused == {Path(item.uri).name: item.reason for item in MRIAdapter().scan(tmp_path)}


def test_unrecorded_sides_are_refused_only_where_they_matter(tmp_path):
    image = nifti(phantom())
    image.set_qform(None, code=0)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    assert reasons_of_readable(tmp_path) == []
    assert reasons(tmp_path, flip=False) == {"the file does not record which side is left"}


def test_pairs_without_partner(tmp_path):
    write_nifti(tmp_path / "c.hdr", phantom(), kind=nib.Nifti1Pair)
    (tmp_path / "c.hdr").rename(tmp_path / "other.hdr")
    assert reasons(tmp_path) == {"a file of the pair is missing"}
    assert len(list(MRIAdapter().scan(tmp_path))) == 2


def test_thick_slices_are_flagged_and_cut_in_their_own_plane_only(tmp_path):
    write_nifti(tmp_path / "a.nii", phantom(shape=(24, 10, 30)), spacing=(1, 5, 1))
    assert reasons(tmp_path) == {"the plane cuts across thick slices"}
    (record,) = MRIAdapter(plane="acquired").scan(tmp_path)
    assert record.meta["thick_slices"] is True
    adapter = MRIAdapter(thick="resample")
    (record,) = adapter.scan(tmp_path)
    assert adapter.read(record, np.random.default_rng(0)).slices.shape[1:] == (50, 24)
    write_nifti(tmp_path / "a.nii", phantom(), spacing=(1, 1.25, 3))
    (record,) = MRIAdapter(plane="coronal").scan(tmp_path)
    assert "thick_slices" not in record.meta


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("RGB", "colour image"), ("RGBA", "partly transparent image"), ("1", "pixels of type 1, no grey values")],
)
def test_exported_slices_that_are_not_grey(tmp_path, mode, reason):
    pixels = (phantom()[:, :, 10] / 6).astype(np.uint8)
    if mode == "RGB":
        image = Image.fromarray(np.stack([pixels, pixels, pixels // 2], axis=2))
    elif mode == "RGBA":
        image = Image.fromarray(np.stack([pixels] * 4, axis=2))
    else:
        image = Image.fromarray(pixels > 20)
    image.save(tmp_path / "a.png")
    assert reasons(tmp_path) == {reason}


def test_exported_slices_that_are_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    pages = [Image.fromarray(noise)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "flat.png")
    assert reasons(tmp_path) == {
        "truncated or damaged data",
        "several pages in one image",
        "not a readable image",
        "empty: all values are equal",
    }


def test_foreign_and_empty_files(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"")
    (tmp_path / "b.dcm").write_bytes(b"x" * 300)
    (tmp_path / "c.docx").write_bytes(b"x")
    (tmp_path / "d.dcm.gz").write_bytes(gzip.compress(b"x"))
    given = {Path(item.uri).name: item.reason for item in MRIAdapter().scan(tmp_path)}
    assert given == {
        "a.nii": "an empty file (0 bytes)",
        "b.dcm": "not a readable DICOM file",
        "c.docx": "not a format that the mri adapter reads",
        "d.dcm.gz": "compressed DICOM file (.dcm.gz)",
    }


def test_too_few_pixels(tmp_path):
    write_nifti(tmp_path / "a.nii", phantom(shape=(6, 30, 20)))
    assert reasons(tmp_path) == {"slices have fewer than 8 pixels on a side"}


def test_sizes_that_no_scanner_makes(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", phantom())
    header = nib.load(path).header
    header.set_data_shape((2000, 2000, 2000))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(400)))
    assert reasons(tmp_path) == {"more than 10^9 voxels"}


def test_file_that_vanished(tmp_path):
    path = write_nifti(tmp_path / "a.nii", phantom())
    adapter = MRIAdapter()
    (record,) = adapter.scan(tmp_path)
    path.unlink()
    for call in (adapter.verify, adapter.prepare, lambda r: adapter.read(r, np.random.default_rng(0))):
        with pytest.raises(BadFileError, match="a file of the record is missing"):
            call(record)


def test_no_identifier_in_what_is_stored(tmp_path):
    write_series(tmp_path, phantom(), patient="SECRET-77")
    manifest = scan_archive(MRIAdapter(), tmp_path).manifest
    assert "SECRET" not in str(manifest.rows.to_pylist())
    (record,) = MRIAdapter().scan(tmp_path)
    assert record.group == "SECRET-77"
    assert not {"SECRET-77", "Doe^Jane"} & {str(value) for value in record.meta.values()}


def groups(root: Path, *names: str, **options) -> list[str]:
    for index, name in enumerate(names):
        write_nifti(root / name, phantom(seed=index))
    return [record.group for record in MRIAdapter(**options).scan(root)]


def test_group_is_the_bids_subject(tmp_path):
    names = ("raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii", "fmriprep/sub-01/sub-01_T2w.nii", "raw/sub-2/a.nii")
    assert groups(tmp_path, *names) == ["sub-01", "sub-01", "sub-2"]


def test_group_is_the_first_folder_that_differs(tmp_path):
    assert groups(tmp_path, "all/p1/T1.nii", "all/p1/x/T2.nii", "all/p2/T1.nii") == ["p1", "p1", "p2"]


def test_group_is_the_name_without_contrast(tmp_path):
    names = ("t1/IXI012-HH-1211_T1.nii.gz", "t1/IXI012-HH-1211_T2.nii.gz", "t1/IXI013_flair.nii", "t1/t1.nii")
    assert groups(tmp_path, *names) == ["IXI012-HH-1211", "IXI012-HH-1211", "IXI013", "t1"]


def test_group_by_option(tmp_path):
    names = ("a/p1/T1.nii", "a/p2/T1.nii", "b/p1/T1.nii")
    assert groups(tmp_path, *names, group_by="folder") == ["a", "a", "b"]
    assert groups(tmp_path, *names, group_by="folder:2") == ["p1", "p2", "p1"]
    assert groups(tmp_path, *names, group_by="file") == ["a/p1/T1", "a/p2/T1", "b/p1/T1"]


def test_common_patient_ids_of_deidentifiers_do_not_join_patients(tmp_path):
    for index in (1, 2):
        write_series(tmp_path / f"p{index}", phantom(seed=index), series=index, patient="Anonymous", spacing=SPACING)
    assert [record.group for record in MRIAdapter().scan(tmp_path)] == ["p1", "p2"]
