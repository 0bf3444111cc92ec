"""Real files: the awkward ones of public test suites, and a few IXI volumes."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from data_adapters.base import Record, Rejected
from data_adapters.errors import BadFileError
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.dicom import load_slice
from data_adapters.mri.nifti import load
from data_adapters.mri.recipe import AREA, random_crop
from data_adapters.mri.volume import TISSUE
from data_adapters.scan import scan_archive

REAL = os.environ.get("LEJEPA_REAL_DATA", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL, reason="LEJEPA_REAL_DATA is not set (folder with the real sample data)"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_every_awkward_file_is_read_or_refused():
    root = Path(REAL) / "formats" / "mri"
    adapter = MRIAdapter(global_size=64, local_size=32, derived=True)
    scan = scan_archive(adapter, root)
    records = scan.manifest.records()
    named = {Path(name) for record in records for name in (record.uri, *record.meta.get("files", []))}
    refused = {Path(item.uri) for item in scan.refused}
    assert named | refused == {path for path in root.rglob("*") if path.is_file()}
    assert not named & refused
    assert all(item.reason and not item.reason.startswith("unreadable") for item in scan.refused)
    assert len(records) >= 8
    for record in records:
        rng = np.random.default_rng(0)
        assert all(view.isfinite().all() for view in adapter.views(adapter.read(record, rng), rng))
        prepared = adapter.prepare(record)
        assert prepared.shape[1:] == (1, 64, 64) and prepared.max() > 0.5


def test_each_awkward_file_alone():
    adapter = MRIAdapter(global_size=64)
    for path in sorted((Path(REAL) / "formats" / "mri").iterdir()):
        (found,) = adapter.scan(path)
        if isinstance(found, Rejected):
            continue
        try:
            adapter.verify(found)
        except BadFileError as error:
            assert error.remedy
            continue
        assert adapter.prepare(found).isfinite().all()


def test_volumes_equal_nibabels_closest_canonical_image():
    compared = 0
    for record in MRIAdapter().scan(Path(REAL) / "formats" / "mri"):
        if isinstance(record, Record) and record.meta["reader"] == "nifti":
            image = nib.as_closest_canonical(nib.load(record.uri))
            expected = np.asanyarray(image.dataobj).squeeze().astype(np.float32)
            np.testing.assert_array_equal(load(Path(record.uri), volume=None).array, expected)
            compared += 1
    assert compared >= 5


def test_every_encoding_of_one_mr_slice_gives_the_same_pixels():
    root = Path(REAL) / "formats" / "mri"
    expected = pydicom.dcmread(root / "pydicom_MR_small.dcm").pixel_array.astype(np.float32)
    files = sorted(root.glob("pydicom_MR_small*.dcm"))
    adapter = MRIAdapter(global_size=64)
    prepared = []
    for file in files:
        np.testing.assert_array_equal(load_slice(file), expected)
        (record,) = adapter.scan(file)
        prepared.append(adapter.prepare(record))
    assert len(files) >= 5
    assert all(torch.equal(item, prepared[0]) for item in prepared)


def test_ixi_volumes():
    adapter = MRIAdapter(channels=3, global_size=64, local_size=32, slices=5)
    records = list(adapter.scan(Path(REAL) / "brain_volumes"))
    assert len({record.group for record in records}) == len(records) == 20
    assert records[0].meta["spacing"] == [2.0, 2.0, 2.0]
    for record in records[:3]:
        adapter.verify(record)
        rng = np.random.default_rng(1)
        assert len(adapter.views(adapter.read(record, rng), rng)) == 8
        prepared = adapter.prepare(record)
        assert prepared.shape == (5, 3, 64, 64) and prepared.mean() > 0.1


def test_exported_slices():
    adapter = MRIAdapter(global_size=64, local_size=32)
    records = list(adapter.scan(Path(REAL) / "brain_mri"))
    assert all(isinstance(record, Record) for record in records)
    assert len(records) == len({record.group for record in records})
    assert adapter.prepare(records[0]).shape == (1, 1, 64, 64)


@pytest.mark.parametrize(("archive", "pattern", "step"), [("brain_mri", "slices/*", 20), ("brain_volumes", "t1/*", 1)])
def test_local_views_show_tissue(archive, pattern, step):
    """docs/mri.md quotes these shares; crops that look for tissue are to be built if they ever exceed 3 %."""
    adapter = MRIAdapter()
    files = [path for path in sorted((Path(REAL) / archive).glob(pattern)) if path.suffix in (".gz", ".png", ".jpg")]
    assert len(files[::step]) >= 20
    shown = []
    for seed, path in enumerate(files[::step]):
        (record,) = adapter.scan(path)
        for draw in range(150 // len(files[::step]) + 1):
            rng = np.random.default_rng((seed, draw))
            source = adapter.read(record, rng)
            for child in rng.spawn(6):
                crop = random_crop(source.draw(child), size=96, area=AREA["local"], rng=child)
                shown.append(float((crop > TISSUE).mean()))
    air = np.mean(np.array(shown) < 0.2)
    print(f"{archive}: {100 * air:.1f} % of {len(shown)} local views with less than a fifth of tissue")
    assert len(shown) > 900 and air < 0.03
