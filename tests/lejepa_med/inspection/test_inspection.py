"""The contact sheet: right settings pass, wrong ones are named in words, and no name leaves the machine."""

import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import data_adapters
from data_adapters.base import BaseAdapter, Record
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.display import choose_channels, planes, stretched
from lejepa_med.inspection import record as findings
from lejepa_med.inspection.record import look_at, raw_picture
from lejepa_med.inspection.sheet import choose_rows, inspect
from tests.data import galaxy, images, mri
from tests.data.histology import write_slide

SIZES = {"global_size": 48, "local_size": 32, "n_local": 2}


def looks(root, modality, **options):
    adapter = data_adapters.create(modality, **{**SIZES, **options})
    manifest = scan_archive(adapter, root).manifest
    adapter = adapter.fit(manifest.records())
    return [look_at(adapter, manifest, row, seed=0) for row in range(len(manifest))]


def said(look):
    return [text.split(":")[0] for text in look.warnings]


@pytest.fixture
def radiographs(tmp_path):
    """16-bit images that use 12 bits, as detectors give."""
    for number in range(2):
        image = (images.scene(96, 96, 1, seed=number).astype(np.uint16) * 16).squeeze()
        Image.fromarray(image).save(tmp_path / f"doe-jane-{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("window", "warning"),
    [
        ((0.0, 4095.0), None),
        ((0.0, 400000.0), "low contrast"),
        ((0.0, 900.0), "saturated"),
        ((3e4, 4e4), "one value only"),
    ],
)
def test_a_wrong_window_is_named(radiographs, window, warning):
    for look in looks(radiographs, "images", channels=1, intensity="window", intensity_range=window):
        assert (warning in said(look)) if warning else not look.warnings
        assert look.raw is not None and "linear from" in look.raw_how


def test_a_wrong_stretch_is_named(tmp_path):
    galaxy.write_cube(tmp_path / "a.fits", galaxy.source(64))
    (good,) = looks(tmp_path, "galaxy")
    assert "z, r, g as red, green, blue" in good.prepared_how
    assert "z, r, g as red, green, blue" in good.raw_how
    assert not {"saturated", "low contrast"} & set(said(good))
    (dark,) = looks(tmp_path, "galaxy", scales=(1e-4,) * 3)
    assert "low contrast" in said(dark)
    (bright,) = looks(tmp_path, "galaxy", scales=(1e4,) * 3)
    assert "saturated" in said(bright)


def test_a_volume_shows_its_slices(tmp_path):
    mri.write_nifti(tmp_path / "sub-1_T1w.nii.gz", mri.phantom())
    (look,) = looks(tmp_path, "mri", slices=4)
    assert "4 slices or tiles" in look.prepared_how and "slice" in look.raw_how
    assert look.prepared.shape == (98, 98)
    assert len(look.views) == 4


class Flat(BaseAdapter):
    """An adapter whose views show nothing, or all the same, or values that it must not give."""

    name, suffixes, fault = "flat", (".npy",), "equal"

    def inspect(self, path, root):
        yield Record(uri=str(path), group="g")

    def read(self, record, rng):
        return np.load(record.uri)

    def prepare(self, record):
        image = torch.from_numpy(np.load(record.uri)).permute(2, 0, 1)[None]
        return image * 3 if self.fault == "range" else image

    def augment(self, kind, size):
        if self.fault == "equal":
            return lambda image, rng: np.ascontiguousarray(image[:size, :size])
        return lambda image, rng: np.full((size, size, 3), 0.2, np.float32)


@pytest.mark.parametrize(
    ("fault", "warning"),
    [("equal", "all views almost equal"), ("background", "views miss the foreground"), ("range", "broken contract")],
)
def test_faults_of_a_plug_in_are_named(tmp_path, fault, warning):
    np.save(tmp_path / "x.npy", images.scene(48, 48, dtype=np.float32))
    adapter = Flat(global_size=48, local_size=48, n_local=1)
    adapter.fault = fault
    look = look_at(adapter, scan_archive(adapter, tmp_path).manifest, 0, seed=0)
    assert warning in said(look)


def test_a_file_gone_bad_is_refused_in_the_sheet(radiographs, tmp_path):
    adapter = data_adapters.create("images", channels=1, intensity="percentile", **SIZES)
    manifest = scan_archive(adapter, radiographs).manifest
    (radiographs / "doe-jane-0.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert inspect(adapter, manifest, out).warned == 1
    page = (out / "inspect.html").read_text()
    assert "refused" in page and "doe" not in page


def test_the_page_stands_alone_and_shows_no_name(radiographs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["inspect", str(radiographs), "--modality", "images", "-n", "2", "--out", str(out)]
    for option in ("channels=1", "intensity=percentile", "global_size=48", "local_size=32"):
        command += ["-o", option]
    main(command)
    assert "0 of 2 records have a warning" in capsys.readouterr().out
    page = (out / "inspect.html").read_text()
    assert "doe-jane" not in page and str(tmp_path) not in page
    assert "default-src 'none'" in page and "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("<img") == 2 * (2 + 8)
    with Image.open(out / "inspect.png") as sheet:
        assert sheet.width > 8 * 168
    main([*command, "--show-names"])
    assert "doe-jane-0.png" in (out / "inspect.html").read_text()


def test_how_to_read_must_be_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--out", str(tmp_path / "o")])
    assert "--modality" in capsys.readouterr().err


def test_rows_come_from_all_groups(tmp_path):
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", images.scene(48, 48, dtype=np.float32, seed=number))
    adapter = Flat(global_size=48)
    manifest = scan_archive(adapter, tmp_path).manifest
    manifest = type(manifest)(
        root=manifest.root,
        adapter=manifest.adapter,
        rows=manifest.rows.set_column(1, "group", [["a", "a", "a", "a", "b", "c"]]),
    )
    for seed in range(5):
        rows = choose_rows(manifest, 3, seed=seed)
        assert rows[1:] == [4, 5] and rows[0] < 4


def test_bands_are_told_and_volumes_shown_in_three_planes():
    assert choose_channels(3, ["r", "g", "b"]).channels == (0, 1, 2)
    assert choose_channels(5, ["u", "g", "r", "i", "z"]).channels == (4, 2, 0)
    assert choose_channels(2, ["T1w", "T2w"]).words == "T1w as grey (T2w is not shown)"
    volume = torch.zeros(1, 8, 6, 4)
    volume[0, 4] = 1
    sheet = planes(volume)
    assert sheet.shape == (1, 8, 24)
    assert sheet[0, :, :8].sum() == 24
    pixels, how = stretched(np.asarray([[0.0, np.nan], [5.0, 10.0]]))
    assert pixels.tolist() == [[0, 0], [128, 255]] and "linear" in how


def test_values_are_shares_of_the_pixels():
    values = findings.Values.of([np.asarray([[[0.0, 0.0, 0.5, 1.0]]], np.float32)])
    assert (values.black, values.saturated) == (0.5, 0.25)


@pytest.mark.parametrize(("most", "said"), [(1 + 2e-7, 0), (1.001, 1)])
def test_rounding_breaks_no_contract(most, said):
    spec = data_adapters.create("images", global_size=16, n_global=2, n_local=0).spec
    prepared = torch.full((1, spec.channels, 16, 16), most)
    assert len(findings.contract(prepared, [torch.zeros(spec.channels, 16, 16)] * 2, spec)) == said


def test_the_tissue_of_a_slide_is_outlined(tmp_path):
    (tmp_path / "slides").mkdir()
    _, tissue = write_slide(tmp_path / "slides" / "one.tif", width=1200, height=1000)
    adapter = data_adapters.create("histology", global_size=64, n_global=1, n_local=0, tiles=2, tile_px=128)
    manifest = scan_archive(adapter, tmp_path / "slides").manifest
    look = look_at(adapter, manifest, 0, seed=0)
    plain, _ = raw_picture(manifest.record(0))
    assert look.raw is not None and plain is not None and "tissue mask outlined" in look.raw_how
    marked = (look.raw != plain).any(axis=2)
    truth = cv2.resize(tissue.astype(np.uint8), plain.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    near = cv2.dilate(truth, np.ones((25, 25))) - cv2.erode(truth, np.ones((25, 25)))
    assert marked.any() and near[marked].mean() > 0.9  # the line runs along the border of the tissue
