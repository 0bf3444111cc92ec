"""Archives in which names lie wherever a format has room for them: nothing of PLANTED may come out of an encoder."""

import csv
import re
from pathlib import Path

import cv2
import h5py
import nibabel as nib
import numpy as np
import tifffile
from astropy.io import fits
from nibabel.nifti1 import Nifti1Extension
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.data import galaxy, histology, images, mri

PATIENT, NAME, BIRTH, VISIT = "PX471147Q", "Mustermann^Erika", "19610817", "20190323"
ACCESSION, HOSPITAL, DOCTOR, SCANNER = "ACC88x3120", "Charlottenhof", "Zuckerkandl", "SN70x0815"
OBSERVER, OBJECT, NOTE = "Kopernika", "Arp9999Secret", "Zaphodbeeble"
UID_ROOT = "1.2.826.0.1.3680043.10.1"  # of tests.data.mri
FOLDER = "Ward7_Quillfeather"
PLANTED = (
    *("Mustermann", "Erika", PATIENT, ACCESSION, HOSPITAL, DOCTOR, SCANNER, OBSERVER, OBJECT, NOTE),
    *("Quillfeather", UID_ROOT, BIRTH, VISIT, "Finchberg"),
)


def found_in(content: str | bytes) -> set[str]:
    """Which planted words occur in a text or a file's content, in any case; a date only as a number of its own."""
    lower = (content.encode() if isinstance(content, str) else content).lower()
    found = {word for word in PLANTED if word.lower().encode() in lower}
    return {word for word in found if not word.isdigit() or re.search(rb"(?<![\d.])%s(?!\d)" % word.encode(), lower)}


def plant(root: Path, modality: str) -> Path:
    """The archive of one modality: at least eight readable items, some bad files, and labels.csv with patients."""
    folder = root / FOLDER / modality
    writers = {"images": _images, "mri": _mri, "histology": _histology, "galaxy": _galaxy}
    readable = writers[modality](folder)
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "group"])
        for number, path in enumerate(readable):
            group = f"{NAME} {number // 2}" if number < 6 else ""  # the rest is grouped by the adapter
            table.writerow([path.relative_to(folder).as_posix(), ("one", "two")[number % 2], group])
        table.writerow([f"{NAME}_lost.png", "one", NAME])
    return folder


def _place(folder: Path, number: int, suffix: str) -> Path:
    patient = folder / f"{NAME.replace('^', '_')}_{BIRTH}" / f"{PATIENT}-{number // 2}"
    patient.mkdir(parents=True, exist_ok=True)
    return patient / f"Erika_Finchberg_{number}{suffix}"


def _images(folder: Path) -> list[Path]:
    text = PngInfo()
    for key, value in (("Author", NAME), ("Comment", NOTE), ("Description", PATIENT)):
        text.add_text(key, value)
        text.add_itxt(key, value)
    exif = Image.Exif()
    exif[0x013B], exif[0x010E], exif[0x8298], exif[0x0132] = NAME, NOTE, HOSPITAL, "2019:03:23 10:00:00"
    paths = []
    for number in range(9):
        path = _place(folder, number, (".png", ".jpg", ".tif")[number % 3])
        scene = images.scene(48, 48, seed=number)
        if path.suffix == ".tif":
            tifffile.imwrite(path, scene, description=f"{NAME} {PATIENT} {NOTE}", software=DOCTOR, metadata=None)
        else:
            Image.fromarray(scene).save(path, **({"pnginfo": text} if path.suffix == ".png" else {"exif": exif}))
        paths.append(path)
    whole = paths[1].read_bytes()
    _place(folder, 20, ".jpg").write_bytes(whole[:-100])  # its header is good
    _place(folder, 21, ".tif").write_bytes(paths[2].read_bytes()[:300])
    _place(folder, 22, ".png").write_bytes(NAME.encode())
    np.save(_place(folder, 23, ".npy"), np.array([NAME, PATIENT], dtype=object), allow_pickle=True)
    Image.fromarray(images.scene(8, 8)).save(_place(folder, 24, ".png"))
    return paths


_DICOM = {
    **{"PatientName": NAME, "PatientBirthDate": BIRTH, "StudyDate": VISIT, "AccessionNumber": ACCESSION},
    **{"InstitutionName": HOSPITAL, "ReferringPhysicianName": DOCTOR, "DeviceSerialNumber": SCANNER},
    **{"StudyDescription": NOTE, "SeriesDescription": NOTE, "ImageComments": NAME, "StationName": SCANNER},
    **{"Manufacturer": f"Made for {HOSPITAL}"},
}


def _mri(folder: Path) -> list[Path]:
    paths = []
    for number in range(8):
        path = _place(folder, number, ".nii.gz")
        volume = mri.nifti(mri.phantom(seed=number))
        for field, text in (("descrip", f"{NAME} {BIRTH}"), ("aux_file", "Quillfeather.mat"), ("intent_name", PATIENT)):
            volume.header[field] = text.encode()
        volume.header["db_name"] = PATIENT.encode()
        volume.header.extensions.append(Nifti1Extension("comment", f"{NAME} {NOTE}".encode()))
        nib.save(volume, path)
        paths.append(path)
    series = _place(folder, 10, "")
    mri.write_series(series, mri.phantom(seed=10), patient=PATIENT, series=3, **_DICOM)
    slice_ = mri.slice_images(mri.phantom(seed=11), "axial")[10]
    screenshot = mri.dataset(slice_, series=4, patient=PATIENT, **_DICOM, ConversionType="WSD")
    screenshot.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    mri.save_dicom(_place(folder, 11, ".dcm"), screenshot)
    burned = mri.dataset(slice_, series=5, patient=PATIENT, **_DICOM, BurnedInAnnotation="YES")
    mri.save_dicom(_place(folder, 12, ".dcm"), burned)
    odd = mri.save_dicom(_place(folder, 13, ".dcm"), mri.dataset(slice_, series=6, patient=PATIENT, **_DICOM))
    # values that pydicom warns of, quoting them; of equal length, so that the file stays whole
    uid = f"{UID_ROOT}.6\x00".encode()
    wrong = odd.read_bytes().replace(uid, f"Erika.Finchberg.{PATIENT}"[: len(uid)].encode().ljust(len(uid)))
    _place(folder, 14, ".dcm").write_bytes(wrong.replace(BIRTH.encode(), b"19611399"))
    _place(folder, 15, ".dcm").write_bytes(odd.read_bytes().replace(b"CS\x02\x00MR", b"CS\x02\x00" + b"Fi"))
    _place(folder, 16, ".dcm").write_bytes(odd.read_bytes()[:-400])
    _place(folder, 17, ".nii.gz").write_bytes(paths[0].read_bytes()[:2000])
    _place(folder, 18, ".nii").write_bytes(NAME.encode() * 100)
    return paths


def _histology(folder: Path) -> list[Path]:
    paths = []
    for number in range(6):
        picture, _ = histology.he_picture(width=320, height=320, seed=number)
        text = PngInfo()
        text.add_text("Comment", f"{NAME} {PATIENT}")
        paths.append(_place(folder, number, ".png"))
        Image.fromarray(picture[112:208, 112:208]).save(paths[-1], pnginfo=text)
    for number in (6, 7):
        picture, _ = histology.he_picture(width=640, height=512, seed=number)
        paths.append(_place(folder, number, ".svs"))
        _write_labelled_svs(paths[-1], picture)
    slide = _place(folder, 8, "")
    slide.mkdir()
    uid = f"{UID_ROOT}.77"
    for path in histology.write_dicom_slide(slide, picture, series=uid):
        named = path.read_bytes().replace(b"case-7", b"ErikaM")
        # no UID at all: a value that pydicom would quote in a warning
        named = named.replace(uid.encode(), f"Erika.{PATIENT * 3}"[: len(uid)].encode())
        path.with_name(f"{NAME}{path.name}").write_bytes(named)
        path.unlink()
    _place(folder, 20, ".svs").write_bytes(paths[-1].read_bytes()[:5000])
    _place(folder, 21, ".png").write_bytes(paths[0].read_bytes()[:600])
    return paths


def _write_labelled_svs(path: Path, picture: np.ndarray) -> None:
    """An Aperio slide whose description, label and file name tell the patient."""
    about = (
        f"Aperio Image Library\r\n640x512|AppMag = 20|MPP = 0.5|User = {DOCTOR}|Title = {NAME}|ScanScope ID = {SCANNER}"
    )
    about += f"|Barcode = {PATIENT}|Date = 03/23/19"
    label = cv2.putText(np.full((64, 200, 3), 255, np.uint8), NAME, (2, 40), cv2.FONT_HERSHEY_PLAIN, 1.2, (0, 0, 0))
    jpeg = {"compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, tile=(256, 256), description=about, **jpeg)
        file.write(label, subfiletype=1, compression="lzw", metadata=None, description=f"Aperio\r\nlabel {PATIENT}")


def _galaxy(folder: Path) -> list[Path]:
    paths = []
    for number in range(8):
        path = galaxy.write_cube(_place(folder, number, ".fits"), galaxy.source(seed=number), ra=30.0 * number)
        with fits.open(path, mode="update") as hdus:
            header = hdus[0].header
            header["OBJECT"], header["OBSERVER"], header["PROPID"] = OBJECT, OBSERVER, ACCESSION
            header["DATE-OBS"], header["ORIGIN"] = "2019-03-23T10:00:00", HOSPITAL
            header["HISTORY"] = f"reduced in /data/{FOLDER} by {DOCTOR}"
            header["COMMENT"] = NOTE
        paths.append(path)
    _place(folder, 20, ".fits").write_bytes(paths[0].read_bytes()[:9000])
    card = paths[1].read_bytes().replace(b"OBSERVER= 'Kopernika", b"OBSERVER= Kopernika  ")  # astropy quotes bad cards
    _place(folder, 21, ".fits").write_bytes(card)
    _place(folder, 22, ".fits.Z").write_bytes(b"\x1f\x9d\x90" + NAME.encode() * 9)
    galaxy.write_single(_place(folder, 23, ".fits"), np.full((48, 48), np.nan, np.float32), OBJECT=OBJECT, FILTER="r")
    with h5py.File(_place(folder, 24, ".h5"), "w") as file:
        file["catalogue"] = np.arange(3)
        file.attrs["author"], file["catalogue"].attrs["patient"] = OBSERVER, NAME
    return paths
