"""Label and train: keys, undo, names, sets on the server, conflicts, a kill, training, and what comes of it."""

import csv
import io
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from harness.launcher import Launcher
from tests.app.web.conftest import Open, check_accessible, until

BRIGHT = """() => {
    const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
    canvas.width = canvas.height = 8;
    context.drawImage(document.querySelector('.pick.focus img'), 0, 0, 8, 8);
    const pixels = context.getImageData(0, 0, 8, 8).data;
    return pixels.reduce((a, b) => a + b) / pixels.length > 140;
}"""


def start_set(page: Page, name: str, *, answer: str = "one class an image", classes: str = "bright, dark") -> None:
    """Begin a set of labels, also where the archive has others; the first image is then the focused one."""
    known = page.get_by_role("combobox", name="Labels", exact=True)
    expect(known.or_(page.get_by_label("Question"))).to_be_visible()
    if known.count():
        known.select_option("")
    page.get_by_label("Question").fill(name)
    page.get_by_role("combobox", name="Answer").select_option(label=answer)
    if classes:
        page.get_by_label("Classes").fill(classes)
    page.get_by_role("button", name="Start labelling").click()
    expect(page.get_by_role("combobox", name="Labels", exact=True).locator("option:checked")).to_have_text(name)
    expect(page.locator(".pick img").first).to_be_visible()
    page.locator(".pick").first.click()


def label_set(address: str, name: str) -> dict:
    sets = httpx.get(f"{address}/v1/label-sets?archive=ward").json()["label_sets"]
    (found,) = [one for one in sets if one["name"] == name]
    return httpx.get(f"{address}/v1/label-sets/{found['id']}").json()


def is_bright(page: Page) -> bool:
    """What a person sees: the mean of the focused thumbnail."""
    return bool(page.evaluate(BRIGHT))


def test_twenty_labels_become_a_probe_that_is_shown_applied_and_asked_what_to_label_next(
    lab: str, open_page: Open, tmp_path: Path
) -> None:
    page = open_page(lab, "archives/ward/label")
    start_set(page, "light")
    page.keyboard.press("2")
    page.keyboard.press("u")  # undo
    expect(page.locator(".pick[data-labelled]")).to_have_count(0)
    page.locator(".pick").first.click()
    for done in range(20):
        expect(page.locator(".pick.focus img")).to_be_visible()
        page.keyboard.press("1" if is_bright(page) else "2")
        expect(page.locator(".pick[data-labelled]")).to_have_count(done + 1)
    page.get_by_role("button", name="Rename dark").click()
    page.get_by_label("New name of dark").fill("dim")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.get_by_text("saved", exact=True)).to_be_visible()
    check_accessible(page)
    kept = label_set(lab, "light")
    assert kept["classes"] == ["bright", "dim"] and {one["label"] for one in kept["labels"]} == {"bright", "dim"}
    with page.expect_download() as saved:
        page.get_by_text("CSV and scripts").click()
        page.get_by_role("button", name="Save as CSV").click()
    text = Path(saved.value.path()).read_text()
    assert {row["id"]: row["label"] for row in csv.DictReader(io.StringIO(text))} == {
        one["id"]: one["label"] for one in kept["labels"]
    }

    page.get_by_role("button", name="Train on 20 labels").click()
    expect(page.get_by_role("heading", name="What the labels taught: light, version 1")).to_be_visible(timeout=60_000)
    expect(page.locator(".train").get_by_text(re.compile("Balanced accuracy, 95 % interval"))).to_be_visible()
    expect(page.get_by_label("Show")).to_contain_text("Most useful next")
    expect(page.locator(".pick")).to_have_count(4)  # those without a label, with what the probe says of them
    expect(page.locator(".pick .caption").first).to_have_text(re.compile(r"(bright|dim) \d+ %"))

    page.get_by_role("button", name="Predict every image").click()
    table = page.get_by_role("row", name=re.compile("Show on the map"))
    expect(table).to_be_visible(timeout=60_000)
    with page.expect_download() as predicted:
        table.get_by_role("button", name="CSV").click()
    assert len(Path(predicted.value.path()).read_text().splitlines()) == 25
    table.get_by_role("link", name="Show on the map").click()
    legend = page.get_by_role("group", name=re.compile("Legend"))
    expect(legend).to_contain_text("bright")
    expect(legend).to_contain_text("dim")


def test_two_people_see_each_other_s_labels_before_one_is_overwritten(lab: str, open_page: Open) -> None:
    one = open_page(lab, "archives/ward/label")
    start_set(one, "shared")
    two = open_page(lab, "archives/ward/label")
    two.get_by_role("combobox", name="Labels", exact=True).select_option(label="shared")
    expect(two.get_by_role("button", name="Rename bright")).to_be_visible()
    expect(two.locator(".pick")).to_have_count(24)
    two.locator(".pick").first.click()
    one.keyboard.press("1")
    expect(one.get_by_text("saved", exact=True)).to_be_visible()
    until(one, "document.querySelectorAll('.pick[data-labelled]').length === 1")
    assert len(label_set(lab, "shared")["labels"]) == 1
    two.keyboard.press("2")  # the same image, another label
    dialog = two.get_by_role("dialog", name="Someone else changed these labels")
    expect(dialog.get_by_role("row").nth(1)).to_contain_text("dark")
    expect(dialog.get_by_role("row").nth(1)).to_contain_text("bright")
    check_accessible(two)
    kept = [found["label"] for found in label_set(lab, "shared")["labels"]]
    assert kept == ["bright"], "overwritten unseen"
    dialog.get_by_role("radio", name="dark").check()
    dialog.get_by_role("button", name="Put together and save").click()
    expect(dialog).to_have_count(0)
    expect(two.get_by_text("saved", exact=True)).to_be_visible()
    assert [found["label"] for found in label_set(lab, "shared")["labels"]] == ["dark"]


def test_no_label_shown_as_saved_is_lost_by_a_kill(launcher: Launcher, runs: Path, open_page: Open) -> None:
    launcher.options["archives_dir"] = str(runs.parent)
    service = launcher.service()
    port = int(service.address.rsplit(":", 1)[1])
    httpx.post(f"{service.address}/v1/archives", json={"name": "ward", "folder": "archive", "encoder": "images"})
    page = open_page(service.address, "jobs")
    expect(page.get_by_role("link", name="Open the archive")).to_be_visible(timeout=60_000)
    page.goto(f"{service.address}/#/archives/ward/label")
    start_set(page, "light")
    for _ in range(6):
        page.keyboard.press("1")
    expect(page.get_by_text("saved", exact=True)).to_be_visible()
    service.end()  # kill -9
    page.keyboard.press("2")
    expect(page.get_by_text("not saved", exact=True)).to_be_visible()
    launcher._start("app.main", port=port).wait_for("Uvicorn running")
    expect(page.get_by_text("saved", exact=True)).to_be_visible(timeout=30_000)  # sent again by itself
    labels = [one["label"] for one in label_set(service.address, "light")["labels"]]
    assert sorted(labels) == ["bright"] * 6 + ["dark"]


@pytest.mark.parametrize(("answer", "kind"), [("a number", "regression"), ("several labels an image", "multilabel")])
def test_numbers_and_several_labels(lab: str, open_page: Open, answer: str, kind: str) -> None:
    page = open_page(lab, "archives/ward/label")
    start_set(page, kind, answer=answer, classes="round, blue" if kind == "multilabel" else "")
    if kind == "multilabel":
        page.keyboard.press("1")
        page.keyboard.press("2")
        expect(page.locator(".pick.focus .chip")).to_have_text("round, blue")
    else:
        page.get_by_label("Number for the chosen images").fill("3.5")
        page.keyboard.press("Enter")
        expect(page.locator(".pick .chip")).to_have_text("3.5")
    expect(page.get_by_text("saved", exact=True)).to_be_visible()
    found = label_set(lab, kind)
    assert found["kind"] == kind
    assert [one["label"] for one in found["labels"]] == [["round", "blue"] if kind == "multilabel" else 3.5]
