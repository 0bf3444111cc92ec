import base64
import functools
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lejepa_med.plot import curve, data_uri
from lejepa_med.probes.neighbours import nearest
from lejepa_med.probes.probe import fit_probe
from lejepa_med.spectrum import eigen_spectrum, pca_rgb
from lejepa_med.training.report import ReportData, render, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def made(**changes):
    return ReportData(**{**values(), **changes})


@functools.cache
def values():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    vectors = (rng.normal(size=(120, 32)) * np.geomspace(2, 0.2, 32) + np.eye(3, 32)[labels] * 3).astype(np.float32)
    blobs = np.zeros((120, 48, 40, 3), np.uint8)
    rows, columns = np.mgrid[:48, :40]
    for image, label, (y, x) in zip(blobs, labels, rng.uniform(12, 28, (120, 2)), strict=True):
        image[...] = (255 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (8 + 30 * label)))[..., None].astype(
            np.uint8
        )
    indices, cosines = nearest(vectors[:60], 5)
    patches = blobs[:6, ::8, ::8].astype(np.float64) @ rng.normal(size=(3, 16)) + rng.normal(size=(6, 6, 5, 16))
    history = [
        {
            "step": step,
            "epoch": step / 100,
            "loss": 0.4 * 0.99**step + 0.1,
            "invariance": 0.3 * 0.99**step + 0.02,
            "sigreg": 5 * 0.98**step + 1.06,
            "sigreg_above_floor": 5 * 0.98**step,
            "backbone/effective_rank": 30 - 20 * 0.98**step,
            "projector/effective_rank": 20 - 10 * 0.98**step,
            "lr": 2e-3 * np.sin(np.pi * step / 400),
            "images_per_second": 200 + rng.normal() * 5,
            "data_wait": 0.03,
        }
        for step in range(0, 400, 10)
    ]
    names = ("spiral", "edge-on", "楕円")
    return {
        "title": "Galaxies, resnet18, <64 px>",
        "verdict": ["Good: balanced accuracy 0.74, random initialisation 0.62.", "No sign of collapse."],
        "settings": {"model.name": "resnet18", "optim.lr": 2e-3, "data.views": [2, 2]},
        "archive": [("Files", 5330), ("Size", "224 × 224", "all")],
        "history": history,
        "online": [
            {
                "step": 40 * k,
                "epoch": 0.4 * k,
                "records": 120,
                "knn": 0.5 + 0.03 * k,
                "linear": 0.55 + 0.03 * k,
                "chance": 1 / 3,
                "backbone/effective_rank": 20.0 + k,
                "projector/effective_rank": 12.0 + k,
                "backbone/rankme": 18.0 + k,
                "backbone/spectrum": [[i, 0.3 * 0.8**i] for i in range(1, 33)],
            }
            for k in range(1, 10)
        ],
        "eigenvalues": eigen_spectrum(vectors)[0],
        "neighbours": [
            (blobs[i], [(blobs[j], float(c)) for j, c in zip(indices[i], cosines[i], strict=True)]) for i in range(4)
        ],
        "pca": list(zip(blobs[:6], pca_rgb(patches), strict=True)),
        "probe": fit_probe(vectors, [names[k] for k in labels], [f"g{i}" for i in range(120)]).metrics,
        "bad_files": {"NaN pixels": 3, "truncated file": 1},
    }


@pytest.fixture(scope="module")
def page():
    return render(made())


class Parsed(HTMLParser):
    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.tags, self.links = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.links += [attributes[name] for name in ("src", "href", "xlink:href", "data") if name in attributes]
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_complete_well_formed_and_alone(page):
    parsed = Parsed(page)
    assert parsed.open == []
    assert parsed.sections == [
        "probe", "spectrum", "neighbours", "pca", "online", "curves", "plane", "archive", "bad-files", "settings"
    ]  # fmt: skip
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in parsed.links)
    assert not re.findall(r"url\((?!#)", page)
    assert len(page) < 1_500_000


def test_page_shows_what_it_was_given(page):
    assert "Galaxies, resnet18, &lt;64 px&gt;" in page and "<64 px>" not in page
    for text in ("balanced accuracy 0.74", "NaN pixels", "224 × 224", "楕円", "optim.lr", "2, 2", "0.002"):
        assert text in page
    rank = eigen_spectrum_rank(made().eigenvalues)
    assert f"effective rank {rank:.1f} of 32" in page
    assert page.count("<svg") == 1 + 4 + 8 + 1 and page.count("<img") == 4 * 6 + 6 * 2


def eigen_spectrum_rank(eigenvalues):
    share = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_every_section_says_how_to_read_it(page):
    for section in re.findall(r"<section id.*?</section>", page, flags=re.S):
        assert re.search(r'<p class="read">[^<]{20,}', section)


def test_text_cannot_become_markup():
    evil = "<script>alert(1)</script>\"'"
    probe = {**made().probe, "warnings": [evil]}
    texts = {"settings": {evil: evil}, "archive": [(evil, evil)], "bad_files": {evil: 1}, "probe": probe}
    page = render(ReportData(title=evil, verdict=[evil], **texts))
    assert "<script" not in page


def test_parts_that_are_missing_are_left_out():
    parsed = Parsed(render(ReportData(title="Stopped at once")))
    assert parsed.sections == ["bad-files"] and "svg" not in parsed.tags
    unscored = {**made().probe, "linear": None, "knn": None, "warnings": ["No cross-validation is possible."]}
    page = render(ReportData(title="t", probe=unscored, history=[{"step": 1, "loss": 2.0}]))
    assert "No cross-validation is possible." in page and page.count("<svg") == 1


def test_nan_in_the_history_leaves_a_gap():
    rows = [{"step": s, "loss": float("nan") if s == 2 else 1.0 + s} for s in range(6)]
    path = max(re.findall(r'<path d="([^"]+)"[^>]*#2f7fd1', curve(rows, "loss")), key=len)
    assert path.count("M") == 2
    assert curve([{"step": 0, "loss": float("nan")}], "loss") == ""
    assert curve([{"step": 0, "loss": 0.0}, {"step": 1, "loss": 1.0}], "loss", scale="log")


def test_a_collapsed_embedding_still_gives_a_page():
    assert "effective rank 1.0 of 8" in render(ReportData(title="t", eigenvalues=np.zeros(8)))


def test_plots_follow_the_colour_scheme(page):
    assert "currentColor" in page and "#010203" not in page and "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("shape", [(30, 20), (30, 20, 1), (30, 20, 3), (600, 300, 3)])
def test_images_keep_their_pixels_and_shape(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    head, body = data_uri(image).split(",")
    assert head == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    if max(shape) <= 160:
        np.testing.assert_array_equal(shown, image.squeeze())
    else:
        assert shown.shape == (160, 80, 3)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)])
def test_images_of_another_kind_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        data_uri(image)


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, ReportData(title="old"))
    before = path.read_bytes()
    assert b"</html>" in before and path.stat().st_mode & 0o044 == 0o044
    assert os.listdir(tmp_path) == ["report.html"]

    def broken(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, ReportData(title="new"))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["report.html"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_page_without_network(tmp_path):
    write_report(tmp_path / "report.html", made())
    picture = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1100,3000", f"--screenshot={picture}", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    drawn = np.asarray(Image.open(picture).convert("L"))
    assert drawn.shape == (3000, 1100) and drawn[:1500].std() > 10 and drawn[1500:].std() > 10
