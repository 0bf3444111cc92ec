"""Answers as DICOM objects, read back by highdicom, and the way through a real DICOMweb server."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.embed import embed_records
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder
from lejepa_med.probes.probe import Probe, fit_probe
from tests.data.mri import phantom, write_nifti, write_series

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six DICOM series of two kinds, a run, probes of class and of number, and a series that no probe has seen."""
    root = tmp_path_factory.mktemp("dicom")
    for number in range(7):
        field = phantom(seed=number)
        field = field / field.max() * 900 + (number % 2) * 400 * np.roll(field / field.max(), 4, axis=0)
        folder = root / ("new" if number == 6 else f"archive/{number}")
        write_series(folder, field.astype(np.uint16), series=number + 1, patient=f"P{number}")
    adapter = data_adapters.create("mri", global_size=32, local_size=32, n_global=1, n_local=0, slices=3)
    torch.manual_seed(0)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, root / "run" / "encoder")
    encoder = load_encoder(root / "run")
    manifest = scan_archive(encoder.adapter, root / "archive").manifest
    vectors = np.stack([one.vector for one in embed_records(encoder, manifest.records()) if one.vector is not None])
    groups = manifest.column("group")
    for name, labels in (("kind", ["even", "odd"] * 3), ("age", [30.0, 41.5, 52.0, 63.0, 74.5, 85.0])):
        fit_probe(vectors, labels, groups, encoder=encoder.fingerprint, folds=2).save(root / name)
    return root


def export(work: Path, probe: str, out: Path, *more: str, series: Path | None = None) -> None:
    given = ["--probe", str(work / probe), "--series", str(series or work / "new"), "--out", str(out)]
    main(["export", str(work / "run"), *given, *more])


@pytest.mark.parametrize("probe", ["kind", "age"])
def test_a_report_names_its_evidence_and_gives_the_answer_back(work: Path, tmp_path: Path, probe: str) -> None:
    export(work, probe, tmp_path / "report.dcm")
    report = hd.sr.srread(tmp_path / "report.dcm")
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted((work / "new").iterdir())]
    assert (report.PatientID, report.StudyInstanceUID) == ("P6", images[0].StudyInstanceUID)
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    named = {
        item.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert named == {image.SOPInstanceUID for image in images}
    (group,) = report.content.get_image_measurement_groups()
    numbers = {one.name.meaning: one.value for one in group.get_measurements()}
    encoder, trained = load_encoder(work / "run"), Probe.load(work / probe)
    record = scan_archive(encoder.adapter, work / "new").manifest.record(0)
    expected = trained.predict(encoder.embed([encoder.adapter.prepare(record)]))[0]
    if probe == "age":
        assert numbers["Predicted value"] == pytest.approx(expected.value, rel=1e-4)
        return
    assert expected.probabilities is not None
    for name, chance in expected.probabilities.items():
        assert numbers[f"Probability of {name}"] == pytest.approx(chance, abs=1e-5)
    (found,) = group.get_qualitative_evaluations()
    assert found.value.meaning == expected.label


def test_a_capture_is_a_picture_of_the_same_study(work: Path, tmp_path: Path) -> None:
    export(work, "kind", tmp_path / "capture.dcm", "--as", "sc")
    capture = pydicom.dcmread(tmp_path / "capture.dcm")
    assert capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage and capture.PatientID == "P6"
    assert capture.pixel_array.shape[2] == 3 and capture.pixel_array.std() > 20
    assert capture.BurnedInAnnotation == "YES" and "not verified" in capture.SeriesDescription


def test_what_is_no_single_dicom_series_is_refused(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nifti").mkdir()
    write_nifti(tmp_path / "nifti" / "one.nii.gz", phantom(seed=1))
    for series, said in ((tmp_path / "nifti", "is no DICOM file"), (work / "archive", "holds 6 series")):
        with pytest.raises(SystemExit):
            export(work, "kind", tmp_path / "report.dcm", series=series)
        assert said in capsys.readouterr().err and not (tmp_path / "report.dcm").exists()


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    """The address of a real Orthanc on loopback."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.is_file():
        pytest.skip("Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, dicom = one.getsockname()[1], two.getsockname()[1]
    settings = {
        "HttpPort": port,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("w") as log:
        server = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None, (tmp_path / "orthanc.log").read_text()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        server.terminate()
        server.wait(20)


def test_in_and_out_of_a_real_server(
    work: Path, orthanc: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lejepa_med.export.dicom import store

    sent = [pydicom.dcmread(file) for file in sorted((work / "new").iterdir())]
    for image in sent:
        store(orthanc, image)
    main(["fetch", orthanc, "--modality", "MR"])
    study, series, modality, count, *_ = capsys.readouterr().out.split()
    assert (study, series) == (sent[0].StudyInstanceUID, sent[0].SeriesInstanceUID)
    assert (modality, int(count)) == ("MR", len(sent))
    fetched = tmp_path / "fetched"
    for _ in range(2):  # repeated, it keeps what is there
        main(["fetch", orthanc, "--study", study, "--series", series, "--out", str(fetched)])
    pixels = {image.SOPInstanceUID: image.pixel_array for image in map(pydicom.dcmread, sorted(fetched.iterdir()))}
    assert all(np.array_equal(pixels[image.SOPInstanceUID], image.pixel_array) for image in sent)
    for name in ("sr", "sc"):
        export(work, "kind", tmp_path / f"{name}.dcm", "--as", name, "--store", orthanc, series=fetched)
    capsys.readouterr()
    main(["fetch", orthanc, "--study", study, "--modality", "SR"])
    _, report, *_ = capsys.readouterr().out.split()
    main(["fetch", orthanc, "--study", study, "--series", report, "--out", str(tmp_path / "back")])
    (file,) = (tmp_path / "back").iterdir()
    back, own = hd.sr.srread(file), hd.sr.srread(tmp_path / "sr.dcm")
    assert back.SOPInstanceUID == own.SOPInstanceUID
    (one,), (other,) = (report.content.get_image_measurement_groups() for report in (back, own))
    assert [m.value for m in one.get_measurements()] == [m.value for m in other.get_measurements()]
    with pytest.raises(SystemExit):
        main(["fetch", orthanc, "--study", "1.2.3", "--series", "1.2.4", "--out", str(tmp_path / "none")])
    assert "DICOMweb server" in capsys.readouterr().err or not (tmp_path / "none").exists()
