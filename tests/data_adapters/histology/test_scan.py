"""What a scan keeps and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_adapters.base import Record, Rejected
from data_adapters.catalog import Catalog
from data_adapters.histology.adapter import HistologyAdapter
from tests.data.histology import he_picture, write_dicom_slide, write_pyramid, write_slide, write_svs, write_tiles

SMALL = {"global_size": 64, "local_size": 32}


def outcome(folder: Path, catalog: Catalog | None = None, **options: object) -> dict[str, Record | Rejected]:
    adapter = HistologyAdapter(**{**SMALL, **options})
    return {Path(f.uri).name: f for f in adapter.scan(folder, catalog=catalog)}


def reasons(found: dict[str, Record | Rejected]) -> dict[str, str]:
    return {name: f.reason if isinstance(f, Rejected) else "" for name, f in found.items()}


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scales")
    picture, _ = he_picture(width=700, height=600, seed=4)
    for name, mpp in {"good": 0.5, "silent": None, "printer": 25400 / 72, "coarse": 1.2, "nanoscope": 0.01}.items():
        write_pyramid(folder / f"{name}.tif", picture, mpp=mpp)
    return folder


def test_mpp_missing_absurd_or_coarse_is_refused(scales: Path) -> None:
    found = outcome(scales)
    assert reasons(found) == {
        "good.tif": "",
        "silent.tif": "mpp missing",
        "printer.tif": "mpp out of range",
        "nanoscope.tif": "mpp out of range",
        "coarse.tif": "scan coarser than the wanted mpp",
    }
    assert all(f.remedy for f in found.values() if isinstance(f, Rejected))
    good = found["good.tif"]
    assert isinstance(good, Record)
    assert good.meta["mpp"] == pytest.approx(0.5, rel=1e-3)
    assert (good.meta["size"], good.meta["bits"], good.group) == ([700, 600], 8, "good")


def test_catalogue_supplies_and_corrects_mpp(scales: Path, tmp_path: Path) -> None:
    table = tmp_path / "catalog.csv"
    rows = ["silent.tif,0.25,p1", "printer.tif,0.5,p2", "good.tif,29,p3", "coarse.tif,half,p4", "nanoscope.tif,,p5"]
    table.write_text("\n".join(["path,mpp,group", *rows]))
    found = outcome(scales, Catalog(table))
    assert reasons(found) == {
        "good.tif": "mpp out of range",
        "silent.tif": "",
        "printer.tif": "",
        "nanoscope.tif": "mpp out of range",
        "coarse.tif": "mpp is not a number",
    }
    silent = found["silent.tif"]
    assert isinstance(silent, Record)
    assert (silent.meta["mpp"], silent.group) == (0.25, "p1")


def test_without_wanted_mpp_each_slide_is_read_at_level_0(scales: Path) -> None:
    assert reasons(outcome(scales, mpp=None)) == {
        "good.tif": "",
        "silent.tif": "",
        "printer.tif": "mpp out of range",
        "nanoscope.tif": "mpp out of range",
        "coarse.tif": "",
    }


def test_samples_follow_the_tissue_area_up_to_the_cap(tmp_path: Path) -> None:
    _, tissue = write_slide(tmp_path / "a.tif", seed=4)
    side = 112  # 1.75 x 64 pixels at the slide's own mpp
    found = outcome(tmp_path)["a.tif"]
    capped = outcome(tmp_path, samples_per_slide=5)["a.tif"]
    assert isinstance(found, Record)
    assert isinstance(capped, Record)
    assert found.samples == pytest.approx(tissue.sum() / side**2, abs=1.5)
    assert capped.samples == 5


def test_a_slide_that_holds_no_image_to_embed_is_refused(tmp_path: Path) -> None:
    picture, _ = he_picture(width=420, height=420, seed=4)
    write_pyramid(tmp_path / "slide.tif", picture)
    whole = HistologyAdapter(**SMALL, min_tissue=0.1, embed_size=384)
    (record,) = whole.scan(tmp_path)
    assert isinstance(record, Record) and whole.prepare(record).shape == (1, 3, 384, 384)
    refused = outcome(tmp_path, min_tissue=0.1, embed_size=448)["slide.tif"]
    assert isinstance(refused, Rejected) and refused.reason == "slide smaller than one region"
    assert "Regions are 448 pixels" in refused.remedy and "the size of the images to embed" in refused.remedy


def test_blank_small_and_nearly_empty_slides_are_refused(tmp_path: Path) -> None:
    glass = np.full((600, 700, 3), 240, np.uint8)
    speck = glass.copy()
    speck[300:330, 300:330] = (180, 80, 160)
    small, _ = he_picture(width=100, height=400)
    for name, picture in {"blank": glass, "speck": speck, "small": small}.items():
        write_pyramid(tmp_path / f"{name}.tif", picture)
    assert reasons(outcome(tmp_path)) == {
        "blank.tif": "no tissue found on the slide",
        "speck.tif": "no region with enough tissue",
        "small.tif": "slide smaller than one region",
    }


def test_tiff_is_a_slide_or_a_tile_by_its_structure(tmp_path: Path) -> None:
    picture, _ = he_picture(width=700, height=600, seed=4)
    write_pyramid(tmp_path / "pyramid.tif", picture)
    write_pyramid(tmp_path / "tiled.tif", picture, levels=1)
    write_svs(tmp_path / "aperio.tif", picture)
    kinds = {name: f.meta["histology"]["kind"] for name, f in outcome(tmp_path).items() if isinstance(f, Record)}
    assert kinds == {"pyramid.tif": "slide", "tiled.tif": "tile", "aperio.tif": "slide"}


def test_other_formats_are_refused_with_a_way_out(tmp_path: Path) -> None:
    for name in ("a.h5", "a.czi", "a.isyntax", "a.docx"):
        (tmp_path / name).write_bytes(b"x")
    found = outcome(tmp_path)
    assert reasons(found) == {
        "a.h5": "damaged or truncated HDF5 file",
        "a.czi": "slide format that this adapter does not read",
        "a.isyntax": "slide format that this adapter does not read",
        "a.docx": "not a format that the histology adapter reads",
    }
    assert all(f.remedy for f in found.values() if isinstance(f, Rejected))


def test_data_files_of_a_mirax_slide_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "s.mrxs").write_bytes(b"damaged")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "Data0000.dat").write_bytes(b"x")
    (tmp_path / "s" / "Slidedat.ini").write_bytes(b"x")
    assert reasons(outcome(tmp_path)) == {"s.mrxs": "slide that openslide cannot open"}


def test_dicom_files_of_one_series_are_one_slide(tmp_path: Path) -> None:
    picture, _ = he_picture(width=700, height=600, seed=4)
    for name, series in {"one": "1.2.3", "two": "1.2.4"}.items():
        (tmp_path / name).mkdir()
        write_dicom_slide(tmp_path / name, picture, series=series)
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    adapter = HistologyAdapter(**SMALL)
    found = list(adapter.scan(tmp_path))
    records = [f for f in found if isinstance(f, Record)]
    assert [Path(f.uri).name for f in found if isinstance(f, Rejected)] == ["broken.dcm"]
    assert len(records) == 2
    for record in records:
        assert (Path(record.uri).name, record.group) == ("level_0.dcm", "case-7")
        assert [Path(p).name for p in record.meta["files"]] == ["level_0.dcm", "level_1.dcm"]
        assert record.meta["histology"]["downsamples"] == [1.0, 2.0]


def test_each_file_of_a_refused_dicom_series_is_named(tmp_path: Path) -> None:
    write_dicom_slide(tmp_path, he_picture(width=700, height=600, seed=4)[0], mpp=24.0)
    assert reasons(outcome(tmp_path)) == dict.fromkeys(("level_0.dcm", "level_1.dcm"), "mpp out of range")


def test_tiles_of_one_folder_share_a_group(tmp_path: Path) -> None:
    write_tiles(tmp_path, slides=["s1", "s2"], per_slide=2)
    found = list(HistologyAdapter(**SMALL).scan(tmp_path))
    assert [f.group for f in found if isinstance(f, Record)] == ["s1", "s1", "s2", "s2"]
    single = HistologyAdapter(**SMALL, group_by="file")
    assert {f.group for f in single.scan(tmp_path) if isinstance(f, Record)} == {
        f"{folder}/tile_{n}" for folder in ("s1", "s2") for n in (0, 1)
    }


def test_damage_behind_a_sound_header_is_found_by_verify(tmp_path: Path) -> None:
    path = write_tiles(tmp_path, slides=["s1"], per_slide=1)[0]
    path.write_bytes(path.read_bytes()[:-4000])
    adapter = HistologyAdapter(**SMALL)
    (record,) = adapter.scan(path)
    assert isinstance(record, Record)
    with pytest.raises(Exception, match="damaged or cut off"):
        adapter.verify(record)


def test_scan_is_the_same_twice_and_survives_the_archive(tmp_path: Path, scales: Path) -> None:
    shutil.copy(scales / "good.tif", tmp_path / "b.tif")
    write_tiles(tmp_path, slides=["a"], per_slide=1)
    adapter = HistologyAdapter(**SMALL)
    assert list(adapter.scan(tmp_path)) == list(adapter.scan(tmp_path))
