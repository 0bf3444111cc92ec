"""Embedding an archive: whole, resumable, without names in the table."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable, embed_archive, find_tables
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised, save_encoder
from lejepa_med.probes.label_table import join, read_labels
from lejepa_med.probes.probe import Probe
from tests.conftest import write_pictures
from tests.data.histology import write_slide, write_tiles


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedEncoder:
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    folder = tmp_path_factory.mktemp("runs") / "run" / "encoder"
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, folder)
    return load_encoder(folder)


@pytest.fixture
def manifest(pictures: Path, encoder: LoadedEncoder) -> Manifest:
    return scan_archive(encoder.adapter, pictures).manifest


def test_a_table_is_whole_and_readable_elsewhere(encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    info = embed_archive(encoder, manifest, tmp_path / "t", shard_rows=20, progress=lambda *a: seen.append(a))
    table = EmbeddingTable.open(tmp_path / "t")
    assert info["rows"] == info["embedded"] == 48 and info["failed"] == 0 and seen[-1] == (48, 48)
    assert table.ids == manifest.column("id") and table.vectors.shape == (48, encoder.dim)
    assert table.encoder == encoder.fingerprint
    assert find_tables(tmp_path) == [tmp_path / "t"]
    assert sorted(file.name for file in (tmp_path / "t").iterdir() if file.suffix != ".parquet") == ["_about"]
    for frame in (pq.read_table(tmp_path / "t"), ds.dataset(tmp_path / "t").to_table()):
        assert frame.column_names == ["id", "group", "label", "vector"] and frame.num_rows == 48
    direct = encoder.embed([encoder.adapter.prepare(manifest.record(row)) for row in range(48)])
    assert np.allclose(table.vectors, direct, atol=1e-5)


def test_interrupted_and_repeated_equals_uninterrupted(
    encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path
) -> None:
    embed_archive(encoder, manifest, tmp_path / "whole", shard_rows=10)

    def stop_at_23(done: int, _total: int) -> None:
        if done == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_archive(encoder, manifest, tmp_path / "cut", shard_rows=10, progress=stop_at_23)
    with pytest.raises(UserError, match="unfinished"):
        EmbeddingTable.open(tmp_path / "cut")
    kept = {file: os.stat(file).st_mtime_ns for file in (tmp_path / "cut").glob("part-*.parquet")}
    assert len(kept) == 2
    embed_archive(encoder, manifest, tmp_path / "cut", shard_rows=10)
    assert all(os.stat(file).st_mtime_ns == time for file, time in kept.items())  # done work is not done again
    one, two = EmbeddingTable.open(tmp_path / "whole"), EmbeddingTable.open(tmp_path / "cut")
    assert one.ids == two.ids and np.array_equal(one.vectors, two.vectors)


def test_a_table_of_an_earlier_release_is_read_and_not_continued(
    encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path
) -> None:
    """Its files lay beside the shards."""
    table = tmp_path / "t"
    embed_archive(encoder, manifest, table)
    for file in (table / "_about").iterdir():
        file.rename(table / file.name)
    (table / "_about").rmdir()
    assert EmbeddingTable.open(table).ids == manifest.column("id") and find_tables(tmp_path) == [table]
    with pytest.raises(UserError, match=r"earlier release.*another --out"):
        embed_archive(encoder, manifest, table)


def test_groups_by_folder_are_told_wherever_they_are_used(
    encoder: LoadedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write_pictures(tmp_path / "a" / f"case{number}", count=8, seed=number)
        (tmp_path / "a" / f"case{number}" / "labels.csv").unlink()
    found = scan_archive(encoder.adapter, tmp_path / "a")
    found.write(tmp_path / "scan")
    manifest, said = tmp_path / "scan" / "manifest.parquet", "32 files in 4 folders were taken for 4 groups, by folder"
    assert Manifest.read(manifest).by_folder == f"{said} (folder:1)"
    main(["split", str(manifest), "--out", str(tmp_path / "s.csv"), "--fractions", "train=.5", "test=.5"])
    assert said in capsys.readouterr().out and said in (tmp_path / "s.receipt.txt").read_text()
    assert embed_archive(encoder, Manifest.read(manifest), tmp_path / "t")["by_folder"] == f"{said} (folder:1)"
    rows = [f"case{n}/{i:04d}.png,{'ab'[i % 2]}\n" for n in range(4) for i in range(8)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    command = ["probe", str(tmp_path / "t"), str(tmp_path / "labels.csv"), "--archive", str(tmp_path / "a")]
    main([*command, "--out", str(tmp_path / "p")])
    assert f"groups: {said} (folder:1)" in capsys.readouterr().out
    (tmp_path / "labels.csv").write_text(
        "path,label,group\n" + "".join(f"{r.strip()},g{i}\n" for i, r in enumerate(rows))
    )
    main([*command, "--out", str(tmp_path / "q")])
    assert "by folder" not in capsys.readouterr().out  # the labels have groups of their own
    # the groups of the split are the catalogue's from now on
    again = scan_archive(encoder.adapter, tmp_path / "a", catalog=Catalog(tmp_path / "s.csv"))
    assert again.by_folder == "" and again.manifest.column("group") == found.manifest.column("group")


def test_an_end_before_the_plan_blocks_nothing(encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "t" / "_about").mkdir(parents=True)
    (tmp_path / "t" / "_about" / ".plan.json.77.draft").write_text("{")
    assert embed_archive(encoder, manifest, tmp_path / "t")["embedded"] == 48


def test_two_encoders_never_mix(encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path) -> None:
    embed_archive(encoder, manifest, tmp_path / "t")
    with pytest.raises(UserError, match=r"another origin.*encoder"):
        embed_archive(randomised(encoder), manifest, tmp_path / "t")
    place, one = manifest.rows.schema.get_field_index("group"), pa.array(["someone"] * len(manifest), pa.string())
    regrouped = dataclasses.replace(manifest, rows=manifest.rows.set_column(place, "group", one))
    with pytest.raises(UserError, match=r"another origin.*groups"):
        embed_archive(encoder, regrouped, tmp_path / "t")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        embed_archive(encoder, manifest, tmp_path / "mine")


def test_a_broken_file_costs_one_row(encoder: LoadedEncoder, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=12)
    manifest = scan_archive(encoder.adapter, root).manifest
    (root / "0007.png").write_bytes(b"no picture")
    info = embed_archive(encoder, manifest, tmp_path / "t")
    assert (info["embedded"], info["failed"]) == (11, 1)
    failed = (tmp_path / "t" / "_about" / "failed-00000.csv").read_text().splitlines()
    assert failed[1].startswith(manifest.column("id")[7] + ",") and len(failed) == 2


def test_names_of_the_archive_are_nowhere_in_the_table(encoder: LoadedEncoder, tmp_path: Path) -> None:
    root = tmp_path / "MUELLER_ANNA_1961"
    write_pictures(root, count=8)
    for number, file in enumerate(sorted(root.glob("*.png"))):
        file.rename(root / f"patient-schmidt-{number}.png")
    (root / "patient-schmidt-3.png").write_bytes(b"broken")
    manifest = scan_archive(encoder.adapter, root, verify=False).manifest
    embed_archive(encoder, manifest, tmp_path / "t")
    for file in (file for file in (tmp_path / "t").rglob("*") if file.is_file()):
        content = file.read_bytes().lower()
        assert b"schmidt" not in content and b"mueller" not in content, file.name


def test_labels_join_by_path_and_by_id(
    encoder: LoadedEncoder, manifest: Manifest, pictures: Path, tmp_path: Path
) -> None:
    embed_archive(encoder, manifest, tmp_path / "t")
    table = EmbeddingTable.open(tmp_path / "t")
    found = join(table, read_labels(pictures / "labels.csv"), archive=pictures)
    assert found.rows == list(range(48)) and found.labels[:2] == ["stripes", "rings"]
    assert len(set(found.groups)) == 24 and found.ids == table.ids
    by_id = tmp_path / "by-id.csv"
    by_id.write_text("id,label\n" + "".join(f"{table.ids[i]},x{i % 2}\n" for i in (4, 9)))
    by_id_found = join(table, read_labels(by_id), archive=tmp_path)
    assert (by_id_found.rows, by_id_found.labels) == ([4, 9], ["x0", "x1"])
    assert len(read_labels(pictures / "labels.csv", split="val")) == 12
    every = read_labels(pictures / "labels.csv")
    with pytest.raises(UserError, match="Not one of the 48"):
        moved = [dataclasses.replace(row, path=f"no/{row.path}") for row in every.rows]
        join(table, dataclasses.replace(every, rows=moved), archive=pictures)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "no column 'path' or 'id'"),
        ("path,class\na,b\n", "no column 'label'"),
        ("path,label\na,\nb,NA\n", "no labelled row.*1 row with 'NA'"),
        ("", "is empty"),
    ],
)
def test_label_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(file)


def with_facts(manifest: Manifest, facts: list[dict[str, object]]) -> Manifest:
    """The manifest with `facts` in place of each row's meta."""
    place = manifest.rows.column_names.index("meta")
    texts = pa.array([json.dumps(row) for row in facts], pa.string())
    return dataclasses.replace(manifest, rows=manifest.rows.set_column(place, "meta", texts))


def test_a_table_carries_the_columns_that_were_asked_for(
    encoder: LoadedEncoder, manifest: Manifest, tmp_path: Path
) -> None:
    facts = [{"mpp": i / 10, "stain": "HE" if i % 2 else None, "flat": i > 5, "size": [9, 9]} for i in range(48)]
    known = with_facts(manifest, facts)
    columns = ["split", "samples", "mpp", "stain", "flat"]
    info = embed_archive(encoder, known, tmp_path / "t", shard_rows=20, columns=columns)
    assert info["columns"] == columns
    frame = ds.dataset([str(p) for p in sorted((tmp_path / "t").glob("*.parquet"))]).to_table()
    assert frame.column_names == ["id", "group", "label", *columns, "vector"]
    for name, kind in {"mpp": pa.float64(), "stain": pa.string(), "flat": pa.bool_()}.items():
        assert frame[name].type == kind and frame[name].to_pylist() == [row[name] for row in facts]
    assert frame["split"].to_pylist() == manifest.column("split")
    assert frame["samples"].type == pa.int64()
    assert len(EmbeddingTable.open(tmp_path / "t").ids) == 48
    with pytest.raises(UserError, match=r"another origin.*columns"):
        embed_archive(encoder, known, tmp_path / "t", columns=["mpp"])
    with pytest.raises(UserError, match=r"another origin.*columns"):
        embed_archive(encoder, known, tmp_path / "t")
    for name, message in (
        ("path", "cannot carry"),
        ("files", "cannot carry"),
        ("size", "no column"),
        ("x", "no column"),
    ):
        with pytest.raises(UserError, match=message):
            embed_archive(encoder, known, tmp_path / name, columns=[name])
        assert not (tmp_path / name).exists()


def test_ids_of_64_bits_and_codes_stay_what_they_are(encoder: LoadedEncoder, pictures: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    rows = [(p, 587722952767439450 + i, f"{i:03d}", i / 8, i, 2**53 + 1 if i else 0.5) for i, p in enumerate(paths)]
    catalog = tmp_path / "sky.csv"
    lines = [",".join(map(str, row)) for row in rows]
    catalog.write_text("\n".join(["path,objid,field,z,run,mixed", *lines, ""]))
    found = scan_archive(encoder.adapter, pictures, catalog=Catalog(catalog)).manifest
    columns = ["objid", "field", "z", "run", "mixed"]
    embed_archive(encoder, found, tmp_path / "t", columns=columns)
    table = ds.dataset([str(p) for p in sorted((tmp_path / "t").glob("*.parquet"))]).to_table()
    kinds = [pa.int64(), pa.string(), pa.float64(), pa.int64(), pa.string()]
    assert [table[name].type for name in columns] == kinds
    known = {row[0]: row[1:] for row in rows}
    wanted = [known[path] for path in found.column("path")]
    for place, name in enumerate(columns[:4]):
        assert table[name].to_pylist() == [row[place] for row in wanted], name
    assert table["mixed"].to_pylist() == [str(row[4]) for row in wanted]  # a float would not hold 2**53 + 1


# --- scale of tiles -------------------------------------------------------------------------------------------------


def histology(folder: Path, *, known_scale: bool | None) -> Path:
    """A run folder with an untrained encoder of 96 px at .5 um per pixel."""
    options = {"global_size": 96, "n_global": 2, "n_local": 0, "mpp": 0.5, "known_scale": known_scale}
    adapter = data_adapters.create("histology", **options)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, folder / "encoder")
    return folder


def test_tiles_of_unknown_or_other_scale_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = write_tiles(tmp_path / "a", slides=["s1", "s2"], per_slide=3)
    rows = [f"{tile.relative_to(tmp_path / 'a')},{tile.parent.name},{k % 2}" for k, tile in enumerate(tiles)]
    (tmp_path / "labels.csv").write_text("path,group,label\n" + "".join(f"{row}\n" for row in rows))
    run = histology(tmp_path / "run", known_scale=True)

    def embed(name: str, *mpp: object, encoder: Path = run) -> str:
        catalog = []
        if mpp:
            cells = [f"{row.split(',')[0]},{value}\n" for row, value in zip(rows, mpp, strict=True)]
            table = "path,mpp\n" + "".join(cells)
            (tmp_path / f"{name}.csv").write_text(table)
            catalog = ["--catalog", str(tmp_path / f"{name}.csv")]
        capsys.readouterr()
        main(["embed", str(encoder), str(tmp_path / "a"), "--out", str(tmp_path / name), "--workers", "0", *catalog])
        return " ".join(capsys.readouterr().err.split())

    unknown = "6 of 6 tiles have no mpp (um per pixel), and the encoder was trained at 0.5"
    shown = embed("none")
    assert unknown in shown and "a catalogue with a column 'mpp'" in shown
    probe = ["probe", str(tmp_path / "none"), str(tmp_path / "labels.csv"), "--archive", str(tmp_path / "a")]
    main([*probe, "--out", str(tmp_path / "p"), "--folds", "2"])
    assert unknown in capsys.readouterr().out
    assert Probe.load(tmp_path / "p").metrics["cautions"][0].startswith(unknown), "for the service"
    main(["predict", str(tmp_path / "p"), str(tmp_path / "none"), "--out", str(tmp_path / "p.csv")])
    assert unknown in capsys.readouterr().out
    assert "note:" not in embed("right", *[0.5] * 6) and "note:" not in embed("coarser", *[1.0] * 6)  # training's range
    shown = embed("mixed", 0.5, 0.5, 0.1, 4, 0.5, 0.5)
    assert "2 of 6 tiles, resized to 96 pixels, lie outside of the 0.4 to 1.1 um per pixel" in shown
    assert "Cut tiles that are about 48 um wide" in shown and "have no mpp" not in shown
    assert "note:" not in embed("own", encoder=histology(tmp_path / "tiles", known_scale=False))


def test_an_encoder_knows_whether_its_archive_had_a_scale(tmp_path: Path) -> None:
    write_tiles(tmp_path / "a" / "tiles", slides=["s1", "s2"])
    adapter = data_adapters.create("histology", global_size=64, local_size=32)
    records = scan_archive(adapter, tmp_path / "a", verify=False).manifest.records()
    assert adapter.fit(records).describe()["options"]["known_scale"] is False
    write_slide(tmp_path / "a" / "slide.tiff")
    records = scan_archive(adapter, tmp_path / "a", verify=False).manifest.records()
    assert adapter.fit(records).describe()["options"]["known_scale"] is True
