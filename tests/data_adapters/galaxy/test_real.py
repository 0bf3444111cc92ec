"""Cut-outs of legacypipe's test images, and SDSS pictures with a catalogue; test_formats_table.py compares pixels."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_adapters.base import Record
from data_adapters.catalog import Catalog
from data_adapters.errors import BadFileError, UserError
from data_adapters.galaxy.adapter import GalaxyAdapter

ROOT = Path(os.environ.get("LEJEPA_REAL_DATA", "")).expanduser()
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not os.environ.get("LEJEPA_REAL_DATA") or not (ROOT / "formats" / "galaxy").is_dir(),
        reason="LEJEPA_REAL_DATA has no formats/galaxy",
    ),
]


def refusals(adapter, root):
    """The readable records, and the reason for every other file."""
    records, reasons = [], {}
    for found in adapter.scan(root):
        if not isinstance(found, Record):
            reasons[Path(found.uri).name] = found.reason
            continue
        try:
            adapter.verify(found)
            records.append(found)
        except BadFileError as error:
            reasons[Path(found.uri).name] = error.cause
    return records, reasons


def test_exposures_of_one_object_share_a_cell_and_one_band_trains():
    records, _ = refusals(GalaxyAdapter(), ROOT / "formats" / "galaxy_cutouts")
    cells = {Path(r.uri).name.split("__")[0]: set() for r in records}
    for record in records:
        cells[Path(record.uri).name.split("__")[0]].add(record.group)
    assert all(len(groups) == 1 for groups in cells.values())
    with pytest.raises(UserError, match="mixes bands: g in 8 records"):
        GalaxyAdapter().fit(records)
    adapter = GalaxyAdapter(bands="g", global_size=64, local_size=32)
    chosen, reasons = refusals(adapter, ROOT / "formats" / "galaxy_cutouts")
    assert len(chosen) == 8
    assert any("differ from the archive's g" in reason for reason in reasons.values())
    fitted = adapter.fit(chosen)
    assert fitted.options.pixel_scale == pytest.approx(0.262, abs=0.01)
    for record in chosen:
        prepared = fitted.prepare(record)
        assert prepared.shape == (1, 1, 64, 64)
        assert 0 <= prepared.min() < prepared.max() <= 1
        assert len(fitted.views(fitted.read(record, np.random.default_rng(0)), np.random.default_rng(0))) == 8


def test_galaxy_zoo_pictures_are_fast_enough():
    folder = ROOT / "galaxies"
    adapter = GalaxyAdapter(global_size=64, local_size=64, n_global=4, n_local=0)
    records = list(adapter.scan(folder / "images", catalog=Catalog(folder / "labels.csv")))
    assert len(records) == 5330
    assert {record.split for record in records} == {"train", "val"}
    adapter = adapter.fit(records)
    times = []
    for number, record in enumerate(records[:100]):
        rng = np.random.default_rng(number)
        start = time.process_time()
        views = adapter.views(adapter.read(record, rng), rng)
        times.append(time.process_time() - start)
    assert views[0].shape == (3, 64, 64)
    assert np.median(times) < 0.02  # seconds of one core for one sample; 4 ms where this was written
