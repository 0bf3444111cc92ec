"""BIDS names and sidecars: what goes into meta, what does not, and inheritance."""

import json
from pathlib import Path

from data_adapters.base import Record, Rejected
from data_adapters.mri import bids
from data_adapters.mri.adapter import MRIAdapter
from tests.data.mri import phantom, write_nifti

SHAPE = (9, 11, 10)


def volume(root: Path, name: str, *, seed: int = 0) -> Path:
    return write_nifti(root / name, phantom(seed=seed, shape=SHAPE))


def note(path: Path, **fields) -> None:
    path.write_text(json.dumps(fields))


def test_names():
    name = bids.parse("sub-01_ses-pre_acq-mprage_run-2_T1w.nii.gz")
    assert name.suffix == "T1w"
    assert name.entities == {"sub": "01", "ses": "pre", "acq": "mprage", "run": "2"}
    for other in ("IXI012-HH-1211_T1.nii", "sub-01.nii", "sub-1_T1w_brain.nii", "sub-_T1w.nii"):
        assert bids.parse(other) is None, other


def test_entities_and_sidecar_of_a_volume(tmp_path):
    volume(tmp_path, "sub-01/ses-2/anat/sub-01_ses-2_acq-hi_run-1_T1w.nii.gz")
    note(
        tmp_path / "sub-01/ses-2/anat/sub-01_ses-2_acq-hi_run-1_T1w.json",
        Manufacturer="Made",
        MagneticFieldStrength=3,
        RepetitionTime=2.3,
        EchoTime=0.00298,
        PatientName="Doe^Jane",
        AcquisitionDateTime="2019-03-04",
        SeriesInstanceUID="1.2.3",
        ManufacturersModelName="x" * 200,
    )
    (record,) = MRIAdapter().scan(tmp_path)
    assert record.group == "sub-01"
    wanted = {"suffix": "T1w", "session": "2", "acquisition": "hi", "run": "1"}
    wanted |= {"manufacturer": "Made", "tesla": 3.0, "repetition_ms": 2300.0, "echo_ms": 2.98}
    assert {key: record.meta[key] for key in wanted} == wanted
    rest = str({key: value for key, value in record.meta.items() if key != "files"})
    assert not any(secret in rest for secret in ("Jane", "2019", "1.2.3", "sub-01", "xxx"))


def test_sidecars_are_inherited_and_the_nearest_wins(tmp_path):
    volume(tmp_path / "data", "sub-01/anat/sub-01_T1w.nii.gz")
    volume(tmp_path / "data", "sub-01/anat/sub-01_T2w.nii.gz", seed=1)
    note(tmp_path / "T1w.json", EchoTime=9)  # above the dataset: not its business
    note(tmp_path / "data/T1w.json", MagneticFieldStrength=1.5, EchoTime=0.003)
    note(tmp_path / "data/acq-hi_T1w.json", FlipAngle=90)  # of another acquisition
    note(tmp_path / "data/sub-01/sub-01_T1w.json", EchoTime=0.004)
    first, second = MRIAdapter().scan(tmp_path)
    assert (first.meta["tesla"], first.meta["echo_ms"]) == (1.5, 4.0) and "flip_deg" not in first.meta
    assert "tesla" not in second.meta


def test_a_sidecar_that_is_written_later_is_seen(tmp_path):
    volume(tmp_path, "sub-01_T1w.nii.gz")
    (before,) = MRIAdapter().scan(tmp_path)
    note(tmp_path / "sub-01_T1w.json", FlipAngle=8)
    (after,) = MRIAdapter().scan(tmp_path)
    assert "flip_deg" not in before.meta and after.meta["flip_deg"] == 8


def test_unreadable_sidecar_costs_no_volume(tmp_path):
    volume(tmp_path, "sub-01_T1w.nii.gz")
    (tmp_path / "sub-01_T1w.json").write_text("{no json")
    (record,) = MRIAdapter().scan(tmp_path)
    assert isinstance(record, Record) and "tesla" not in record.meta


def test_masks_and_phase_are_refused_by_name(tmp_path):
    for name in (
        "sub-01_T1w.nii",
        "sub-01_label-lesion_mask.nii",
        "sub-01_space-T1w_dseg.nii",
        "sub-01_part-phase_T2star.nii",
    ):
        volume(tmp_path, name)
    found = list(MRIAdapter().scan(tmp_path))
    assert sorted(item.reason for item in found if isinstance(item, Rejected)) == [
        "a BIDS mask or segmentation",
        "a BIDS mask or segmentation",
        "phase, real or imaginary image",
    ]
    assert len(found) == 4
