"""What the commands do about a leaking split: pretrain and probe refuse, split repairs, embed tells."""

import json
from pathlib import Path

import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import save_encoder
from tests.data_adapters.test_leaks import leaking
from tests.lejepa_med.runs import tiny


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return leaking(tmp_path / "a")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    folder = tmp_path_factory.mktemp("runs") / "run" / "encoder"
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_pretrain_on_a_leaking_split_needs_a_word(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lejepa_med.training import loop

    command = ["pretrain", archive, "--modality", "images", "--out", tmp_path / "run"]
    command += ["--catalog", archive / "labels.csv", "--split", "train", "--train.accelerator", "cpu"]
    said = refused(capsys, *command)
    assert "LEAK: 1 group lies in several splits (2 images) and 1 image" in said
    assert "lejepa-med split" in said and "--allow-leak" in said

    begun = []
    monkeypatch.setattr(loop, "build_state", lambda fabric, config, *_, **__: begun.append(config) or 1 / 0)
    for number, allow in enumerate((["--allow-leak"], ["--allow-leak"])):
        with pytest.raises(ZeroDivisionError):  # where the training would begin
            main([*map(str, command), "--out", str(tmp_path / f"allowed{number}"), *allow])
    assert [config.data.allow_leak for config in begun] == [True, True], "and the run's settings record it"
    config = tiny(archive, tmp_path / "all", data={"catalog": archive / "labels.csv"})
    with pytest.raises(ZeroDivisionError):  # no split is used, so none leaks
        loop.pretrain(config)


def test_split_says_what_it_repaired(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = ["--catalog", str(archive / "labels.csv")]
    main(["scan", str(archive), "--modality", "images", "--out", str(tmp_path / "scan"), *catalog])
    shown = capsys.readouterr()
    assert "LEAK" in shown.err and "leaks.csv" in shown.out
    out = tmp_path / "s.csv"
    main(
        ["split", str(tmp_path / "scan" / "manifest.parquet"), "--out", str(out), "--fractions", "train=.5", "test=.5"]
    )
    assert "1 groups (2 images) and 1 equal images lay in several splits" in capsys.readouterr().out
    receipt = (tmp_path / "s.receipt.txt").read_text()
    assert "repaired: in the manifest's own split, 1 groups (2 images) and 1 equal images lay in several" in receipt
    found = scan_archive(data_adapters.create("images"), archive, catalog=Catalog(out))
    assert found.leak is None
    split = dict(zip(found.manifest.column("path"), found.manifest.column("split"), strict=True))
    assert split["0002.png"] == split["0003.png"] and split["0000.png"] == split["0006.png"]


def test_a_probe_across_a_leaking_split_needs_a_word(
    archive: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, labels = tmp_path / "t", archive / "labels.csv"
    main(["embed", str(encoder), str(archive), "--out", str(table), "--workers", "0", "--catalog", str(labels)])
    assert "LEAK" in capsys.readouterr().err
    related = EmbeddingTable.open(table)
    assert len(related.related) == 4 and related.leak() is not None
    assert not any(b".png" in file.read_bytes() for file in table.rglob("*.*")), "pseudonyms, no paths"

    command = ["probe", table, labels, "--archive", archive, "--out", tmp_path / "p"]
    for further in (["--split", "train"], ["--split", "val"], []):
        said = refused(capsys, *command, *further)
        assert "LEAK: 1 group lies in several splits (2 images) and 1 image lies" in said, further
        assert "row 5 (0003.png) (val)" in said and "lejepa-med split" in said and "--allow-leak" in said
    main([*map(str, command), "--split", "train", "--allow-leak"])
    assert "LEAK: 1 group" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "p" / "probe.json").read_text())["metrics"]
    assert metrics["leak"] == {"groups": 1, "images": 2, "copies": 1}

    # labels without splits: those of the catalogue with which the archive was embedded
    bare = tmp_path / "bare.csv"
    rows = [line.split(",")[:2] for line in labels.read_text().splitlines()]
    bare.write_text("".join(f"{path},{label}\n" for path, label in rows))
    said = refused(capsys, "probe", table, bare, "--archive", archive, "--out", tmp_path / "q")
    assert "LEAK: 1 group" in said
    clean = tmp_path / "clean.csv"
    kept = [row for row in rows if row[0] not in ("0000.png", "0002.png", "0003.png", "0006.png")]
    clean.write_text("".join(f"{path},{label}\n" for path, label in kept))
    main(["probe", str(table), str(clean), "--archive", str(archive), "--out", str(tmp_path / "q")])

    # only the equal pictures are left, under patients of two splits
    copies = tmp_path / "copies.csv"
    copies.write_text(labels.read_text().replace("0003.png,rings,g1,val", "0003.png,rings,g1,train"))
    said = refused(capsys, "probe", table, copies, "--archive", archive, "--split", "train", "--out", tmp_path / "r")
    assert "LEAK: 1 image lies in different splits as exact copies under other groups" in said

    # a clean split of the labels counts, whatever the catalogue's was
    fine = tmp_path / "fine.csv"
    fine.write_text(labels.read_text().replace(",val", ",train"))
    main(["probe", str(table), str(fine), "--archive", str(archive), "--split", "train", "--out", str(tmp_path / "s")])


def test_embedding_a_manifest_tells_its_leak(
    archive: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = data_adapters.create("images")
    manifest = scan_archive(adapter, archive, catalog=Catalog(archive / "labels.csv")).manifest
    manifest.write(tmp_path / "m.parquet")
    main(["embed", str(encoder), str(tmp_path / "m.parquet"), "--out", str(tmp_path / "t"), "--workers", "0"])
    assert "LEAK 1 group lies in several splits" in capsys.readouterr().err
    assert (tmp_path / "t" / "_about" / "related.json").is_file()
