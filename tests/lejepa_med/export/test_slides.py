"""Tables and tiles in the files of other tools, read back as those tools read them."""

import csv
import json
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from PIL import Image

import data_adapters
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable, embed_archive, in_parts, read_shards
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import load_encoder, save_encoder
from lejepa_med.probes.probe import fit_probe
from tests.data.histology import write_slide

POSITION = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
# RFC 7946, and what QuPath 0.6 reads from properties (its class PathObjectTypeAdapter)
QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "properties": {
                            "type": {"const": "Polygon"},
                            "coordinates": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 1,
                                "items": {"type": "array", "minItems": 5, "maxItems": 5, "items": POSITION},
                            },
                        },
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification", "measurements"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["tile", "annotation"]},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color", "colorRGB"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "color": {
                                        "type": "array",
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                        "minItems": 3,
                                        "maxItems": 3,
                                    },
                                    "colorRGB": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, a run, its table of tiles, a probe of where a tile lies, and a scan with the slides' names."""
    root = tmp_path_factory.mktemp("slides")
    (root / "archive").mkdir()
    for number in range(2):
        write_slide(root / "archive" / f"Doe_{number}.tif", width=600 + 60 * number, height=500, seed=number)
    adapter = data_adapters.create("histology", global_size=32, local_size=32, n_global=1, n_local=0, tile_px=64)
    torch.manual_seed(0)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, root / "run" / "encoder")
    encoder = load_encoder(root / "run")
    manifest = scan_archive(encoder.adapter, root / "archive").manifest
    (root / "scan").mkdir()
    manifest.write(root / "scan" / "manifest.parquet")
    divided, columns = in_parts(encoder.adapter, manifest)
    embed_archive(encoder, divided, root / "tiles", columns=columns)
    table = EmbeddingTable.open(root / "tiles")
    labels = ["left" if x < 300 else "right" for x in read_shards(root / "tiles").column("x").to_pylist()]
    fit_probe(table.vectors, labels, table.groups, ids=table.ids, encoder=table.encoder, folds=2).save(root / "probe")
    return root


def export(work: Path, *arguments: str) -> None:
    main(["export", str(work / "tiles"), *arguments])


def test_hdf5_has_tridents_layout_and_its_coordinates_come_back(work: Path, tmp_path: Path) -> None:
    export(work, "--as", "h5", "--out", str(tmp_path / "h5"), "--names", str(work / "scan"))
    table, rows = EmbeddingTable.open(work / "tiles"), read_shards(work / "tiles")
    files = sorted((tmp_path / "h5").iterdir())
    assert [file.name for file in files] == ["Doe_0.h5", "Doe_1.h5"]
    done = 0
    for file in files:
        with h5py.File(file) as opened:
            features, coords = opened["features"][:], opened["coords"][:]
            facts = dict(opened["coords"].attrs)
        assert features.dtype == np.float32 and coords.dtype.kind == "i" and features.shape[0] == len(coords)
        own = slice(done, done + len(coords))
        assert np.array_equal(features, table.vectors[own])
        assert np.abs(coords[:, 0] - np.array(rows.column("x").to_pylist()[own])).max() <= 0.5
        assert (facts["patch_size"], facts["patch_size_level0"], facts["level0_magnification"]) == (32, 32, 20)
        assert facts["level0_height"] == 500 and facts["overlap"] == 0
        done += len(coords)
    assert done == len(table.ids)
    # our own reader of TRIDENT's coordinates accepts them for these slides
    adapter = data_adapters.create(
        "histology", global_size=32, local_size=32, n_local=0, tile_px=64, coords=tmp_path / "h5"
    )
    again = scan_archive(adapter, work / "archive").manifest
    assert len(again) == 2 and json.loads(again.value("meta", 0))["histology"]["patches"]["patch"] == 32


@pytest.mark.parametrize("kind", ["tile", "annotation"])
def test_geojson_is_what_qupath_reads(work: Path, tmp_path: Path, kind: str) -> None:
    more = ["--annotations"] if kind == "annotation" else []
    export(work, "--as", "geojson", "--out", str(tmp_path / "geo"), "--probe", str(work / "probe"), *more)
    rows = read_shards(work / "tiles")
    found = {}
    for file in sorted((tmp_path / "geo").iterdir()):
        assert "Doe" not in file.name and "Doe" not in file.read_text()
        collection = json.loads(file.read_text())
        jsonschema.validate(collection, QUPATH)
        found |= {one["id"].replace("-", ""): one for one in collection["features"]}
    assert sorted(found) == sorted(rows.column("id").to_pylist())
    for row in rows.select(["id", "x", "y", "side"]).to_pylist():
        one = found[row["id"]]
        (left, top), (right, bottom) = one["geometry"]["coordinates"][0][0], one["geometry"]["coordinates"][0][2]
        assert (left, top, right - left, bottom - top) == (row["x"], row["y"], row["side"], row["side"])
        given = one["properties"]
        chances = {name: given["measurements"][f"probability {name}"] for name in ("left", "right")}
        assert given["objectType"] == kind and given["classification"]["name"] == max(chances, key=chances.__getitem__)


def test_heat_maps_show_the_values_where_the_tiles_are(work: Path, tmp_path: Path) -> None:
    given = ["--probe", str(work / "probe"), "--names", str(work / "scan"), "--of", "right"]
    export(work, "--as", "png", "--out", str(tmp_path / "maps"), *given)
    export(work, "--out", str(tmp_path / "heat.html"), *given)
    page = (tmp_path / "heat.html").read_text()
    assert "Doe_1" in page and "probability of right" in page and page.count("data:image/png") == 3
    export(work, "--out", str(tmp_path / "t.parquet"), "--probe", str(work / "probe"))
    table, slide = pq.read_table(tmp_path / "t.parquet").to_pylist(), {}
    for row in table:
        slide.setdefault(row["whole"], []).append(row)
    assert max(Image.open(tmp_path / "maps" / "Doe_0.png").size) == 1024
    export(work, "--as", "png", "--out", str(tmp_path / "bare"), "--probe", str(work / "probe"), "--of", "right")
    for name, tiles in slide.items():  # without a picture the slide is plain grey, and colours tell the values alone
        pixels = np.asarray(Image.open(tmp_path / "bare" / f"{name}.png")).astype(int)
        scale = 1024 / max(max(row["x"], row["y"]) + row["side"] for row in tiles)
        centres = [[round((row[axis] + row["side"] / 2) * scale) for axis in ("y", "x")] for row in tiles]
        green = [pixels[y, x, 1] for y, x in centres]  # it grows along the scale, from dark blue to yellow
        chances = [row["probability right"] for row in tiles]
        assert np.corrcoef(green, chances)[0, 1] > 0.95 and np.ptp(chances) > 0.05


def test_tables_as_csv_parquet_and_fits_hold_the_same(work: Path, tmp_path: Path) -> None:
    files = {suffix: tmp_path / f"t.{suffix}" for suffix in ("csv", "parquet", "fits")}
    for file in files.values():
        export(work, "--out", str(file), "--probe", str(work / "probe"), "--vectors")
    table = pq.read_table(files["parquet"])
    with files["csv"].open() as stream:
        rows = list(csv.DictReader(stream))
    with fits.open(files["fits"]) as opened:
        data, ids = opened[1].data, table.column("id").to_pylist()
        assert list(data["id"]) == ids == [row["id"] for row in rows]
        vectors = np.stack(table.column("vector").to_numpy(zero_copy_only=False))
        assert np.array_equal(data["vector"], vectors) and np.array_equal(
            vectors, EmbeddingTable.open(work / "tiles").vectors
        )
        assert np.array_equal(np.array([float(row["vector_3"]) for row in rows], np.float32), vectors[:, 3])
        for name in ("x", "side", "probability left", "novelty"):
            assert np.array_equal(data[name], table.column(name).to_numpy())
            assert np.array_equal([float(row[name]) for row in rows], data[name])
        assert list(data["predicted label"]) == table.column("predicted label").to_pylist()
    assert "Doe" not in files["csv"].read_text()
    export(work, "--out", str(files["csv"]), "--names", str(work / "scan"))
    assert "Doe_0.tif" in files["csv"].read_text()
    predicted = ["predict", str(work / "probe"), str(work / "tiles"), "--out", str(tmp_path / "predicted.csv")]
    main([*predicted, "--names", str(work / "scan")])  # a tile has the name of its slide there, too
    with (tmp_path / "predicted.csv").open() as stream:
        assert {row["path"] for row in csv.DictReader(stream)} == {"Doe_0.tif", "Doe_1.tif"}


def test_what_cannot_be_drawn_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: Path, *arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["export", str(source), *arguments])
        return capsys.readouterr().err

    assert "--as h5 --out FOLDER" in refused(work / "tiles", "--out", str(tmp_path / "one.h5"))
    assert "--probe FOLDER" in refused(work / "tiles", "--out", str(tmp_path / "one.html"))
    assert "no class 'up'" in refused(
        work / "tiles", "--out", str(tmp_path / "one.html"), "--probe", str(work / "probe"), "--of", "up"
    )
    encoder = load_encoder(work / "run")
    embed_archive(encoder, scan_archive(encoder.adapter, work / "archive").manifest, tmp_path / "whole")
    assert "--per-tile" in refused(tmp_path / "whole", "--out", str(tmp_path / "one.h5"))
    assert "no embedding table" in refused(work / "run", "--out", str(tmp_path / "one.csv"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["whole"]
