"""How an image was made: which facts count, and what of them an embedding table may hold."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import data_adapters
from data_adapters.acquisition import acquisition_facts, public_facts


def test_facts_are_numbers_sizes_and_short_texts() -> None:
    meta = {
        "size": [224, 180],
        "tesla": 3,
        "manufacturer": "SIEMENS Healthineers",
        "model": "Skyra at St. Elsewhere",
        "affine": [1, 2],
        "patient_note": "Doe",
        "histology": {"vendor": "aperio", "kind": "slide"},
        "site": "x" * 100,
        "derived": True,
    }
    facts = acquisition_facts(meta)
    assert facts == {
        "size": "224 x 180",
        "tesla": 3.0,
        "manufacturer": "SIEMENS Healthineers",
        "model": "Skyra at St. Elsewhere",
        "vendor": "aperio",
    }
    public = public_facts(facts)
    assert (public["manufacturer"], public["vendor"], public["tesla"]) == ("siemens", "aperio", 3.0)
    assert "Elsewhere" not in str(public) and public["model"] == public_facts(facts)["model"] != facts["model"]
    other = public_facts({"manufacturer": "Made for St. Elsewhere"})
    assert str(other["manufacturer"]).startswith("manufacturer-") and "Elsewhere" not in str(other)


def test_fits_headers_tell_survey_and_seeing(tmp_path: Path) -> None:
    header = fits.Header({"SURVEY": "LegacySurvey", "SEEING": 1.3, "EXPTIME": 90, "AIRMASS": -1.0, "OBSERVER": "Doe"})
    image = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    fits.writeto(tmp_path / "a.fits", image, header)
    adapter = data_adapters.create("galaxy", bands="r")
    (record,) = adapter.inspect(tmp_path / "a.fits", tmp_path)
    facts = acquisition_facts(record.meta)
    assert facts["survey"] == "LegacySurvey" and facts["seeing"] == pytest.approx(1.3) and facts["exposure_s"] == 90
    assert "airmass" not in facts and "Doe" not in str(record.meta)
