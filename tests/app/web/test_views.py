"""A dropped file of every modality, an encoder with its run, two encoders compared, folders, quality."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.app.helpers import png
from tests.app.web.conftest import Open, check_accessible
from tests.data import galaxy, histology, mri


def _volume(folder: Path) -> Path:
    return mri.write_nifti(folder / "head.nii.gz", mri.phantom())


def _slide(folder: Path) -> Path:
    histology.write_slide(folder / "slide.tiff", width=600, height=500)
    return folder / "slide.tiff"


def _galaxy(folder: Path) -> Path:
    return galaxy.write_cube(folder / "sky.fits", galaxy.source(48))


@pytest.mark.parametrize(
    ("encoder", "write", "unit"), [("mri", _volume, "slice"), ("histology", _slide, "tile"), ("galaxy", _galaxy, "")]
)
def test_a_dropped_file_is_shown_as_the_encoder_sees_it(
    lab: str, open_page: Open, tmp_path: Path, encoder: str, write: Callable[[Path], Path], unit: str
) -> None:
    page = open_page(lab, "file")
    page.get_by_label("Encoder").select_option(encoder)
    page.get_by_label("File to look at").set_input_files(write(tmp_path))
    shown = page.get_by_role("img", name=re.compile("^Prepared"))
    expect(shown).to_be_visible()
    over = page.locator(".viewer .over")
    expect(over).to_be_visible(timeout=60_000)  # the features of its patches
    page.get_by_label("opacity").fill("0.8")
    expect(over).to_have_css("opacity", "0.8")
    if unit:
        before = shown.get_attribute("src")
        slider = page.get_by_label(re.compile(f"^{unit} "))
        slider.focus()
        page.keyboard.press("Home")
        expect(shown).to_have_attribute("alt", re.compile(f"Prepared {unit} 1 of"))
        assert shown.get_attribute("src") != before
    page.get_by_role("button", name="Attention").click()
    expect(page.get_by_text(re.compile("attention", re.IGNORECASE)).last).to_be_visible()  # why a CNN has none
    check_accessible(page)


def test_a_dropped_picture_has_neighbours_and_a_broken_one_its_remedy(lab: str, open_page: Open) -> None:
    page = open_page(lab, "file", scheme="dark")
    page.get_by_label("Encoder").select_option("images")
    page.get_by_label("Neighbours in").select_option("ward")
    file = page.get_by_label("File to look at")
    file.set_input_files({"name": "new.png", "mimeType": "image/png", "buffer": png(99)})
    expect(page.locator(".inspect .pictures img")).to_have_count(12)
    check_accessible(page)
    file.set_input_files({"name": "cut.png", "mimeType": "image/png", "buffer": png()[:60]})
    alert = page.get_by_role("alert")
    expect(alert).to_be_visible()
    assert len(alert.locator(".remedy").inner_text()) > 10
    check_accessible(page)


def test_an_encoder_with_its_run_and_two_compared(lab: str, open_page: Open) -> None:
    page = open_page(lab, "encoders/trained")
    expect(page.get_by_role("img", name=re.compile("^Loss"))).to_be_visible()
    expect(page.get_by_role("heading", name="Model card")).to_be_visible()
    report = page.get_by_role("link", name="Open the run's report").get_attribute("href")
    assert httpx.get(f"{lab}{report}").headers["content-type"].startswith("text/html")
    check_accessible(page)
    page.goto(f"{lab}/#/encoders")
    for name in ("trained", "images"):
        card = page.locator("section.card", has=page.get_by_role("link", name=name, exact=True))
        card.get_by_role("button", name="Compare").click()
    table = page.get_by_role("table")
    expect(table.get_by_role("row", name=re.compile("^Modality"))).to_contain_text("images")
    check_accessible(page)


def test_a_listed_folder_is_chosen_and_embedded(lab: str, open_page: Open) -> None:
    page = open_page(lab, "embed")
    page.get_by_role("button", name="From a listed folder").click()
    page.get_by_role("button", name="Choose ward-3").click()
    page.get_by_label("Name of the archive").fill("from-folder")
    page.get_by_label("Encoder").select_option("images")
    check_accessible(page)
    page.get_by_role("button", name="Embed", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="from-folder is ready")).to_be_visible(timeout=60_000)
    page.get_by_role("link", name="Open the map").click()
    expect(page.get_by_role("application", name=re.compile("Map of 24 images"))).to_be_visible()


def test_odd_images_are_found_shown_and_chosen_on_the_map(lab: str, open_page: Open) -> None:
    page = open_page(lab, "archives/ward/quality")
    page.get_by_role("button", name="Check for confounders").click()
    expect(page.get_by_role("alert")).to_contain_text("no column")  # and the remedy
    page.get_by_role("button", name="Find odd images").click()
    expect(page.get_by_role("heading", name="Findings")).to_be_visible(timeout=60_000)
    odd = page.locator("section.card", has=page.get_by_role("heading", name=re.compile("^Unlike all others: [1-9]")))
    expect(odd.locator("figure img").first).to_be_visible()
    check_accessible(page)
    odd.get_by_role("button", name="Choose them on the map").click()
    expect(page.get_by_role("heading", name=re.compile("images? chosen"))).to_be_visible()
