"""`lejepa-med search`: neighbours of files and of ids, by the very search of the service."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.names import Names
from tests.conftest import write_pictures
from tests.data.mri import SPACING, phantom, write_nifti, write_series
from tests.lejepa_med.probes.test_names import encoder

Capture = pytest.CaptureFixture[str]
COUNT = 12


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of six groups with a catalogue, one of them with an awkward name; their scan, an encoder and a table."""
    folder = tmp_path_factory.mktemp("search")
    root = write_pictures(folder / "archive", count=COUNT)
    (root / "0003.png").rename(root / "a, [b].png")
    catalog = (root / "labels.csv").read_text().replace("0003.png", '"a, [b].png"').splitlines()
    lines = [f"{line},{'mpp,objid,flat' if not n else f'{n / 10},{2**62 + n},x'}" for n, line in enumerate(catalog)]
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n")
    given = ["--catalog", str(folder / "catalog.csv")]
    main(["scan", str(root), "--modality", "images", *given, "--out", str(folder / "scan")])
    run = encoder(folder / "run", "images")
    table = ["--out", str(folder / "table"), "--columns", "mpp,objid"]
    main(["embed", str(run), str(root), *given, *table, "--workers", "0"])
    return folder


def search(work: Path, *arguments: str) -> list[dict[str, str]]:
    out = work / "found" / "hits.csv"
    main(["search", *arguments, "--table", str(work / "table"), "--out", str(out)])
    with out.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def failed(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["search", *arguments])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def expected(work: Path, row: int, *, keep: np.ndarray | None = None) -> list[str]:
    """Ids by cosine to a row of the table, without that row."""
    table = EmbeddingTable.open(work / "table")
    vectors = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    order = [i for i in np.argsort(-(vectors @ vectors[row]), kind="stable") if i != row and (keep is None or keep[i])]
    return [table.ids[i] for i in order]


def test_an_id_finds_its_neighbours(work: Path) -> None:
    table = EmbeddingTable.open(work / "table")
    hits = search(work, table.ids[4], "-k", "5")
    assert [hit["id"] for hit in hits] == expected(work, 4)[:5]
    assert list(hits[0]) == ["query", "rank", "score", "id", "label", "mpp", "objid", "group"]
    assert [hit["rank"] for hit in hits] == list("12345") and {hit["query"] for hit in hits} == {table.ids[4]}
    place = table.ids.index(hits[0]["id"])
    assert (hits[0]["group"], hits[0]["label"]) == (table.groups[place], table.labels[place])
    cosine = table.vectors[4] @ table.vectors[place] / np.prod(np.linalg.norm(table.vectors[[4, place]], axis=1))
    assert float(hits[0]["score"]) == pytest.approx(cosine, abs=1e-4)


def test_files_are_embedded_and_named(work: Path, tmp_path: Path, capsys: Capture) -> None:
    awkward, other = tmp_path / "new, {1}.png", tmp_path / "b.png"
    shutil.copy(work / "archive" / "a, [b].png", awkward)
    shutil.copy(work / "archive" / "0007.png", other)
    hits = search(
        work, str(awkward), str(other), "--encoder", str(work / "run"), "--names", str(work / "scan"), "-k", "3"
    )
    assert [(hit["query"], hit["rank"]) for hit in hits] == [(str(f), r) for f in (awkward, other) for r in "123"]
    firsts = [hit for hit in hits if hit["rank"] == "1"]
    assert [hit["path"] for hit in firsts] == ["a, [b].png", "0007.png"]  # a copy is found again
    assert [float(hit["score"]) for hit in firsts] == pytest.approx([1, 1], abs=1e-4)
    assert "names: 6 of 6 ids found" in capsys.readouterr().err


def test_a_path_below_the_archive_is_its_item(work: Path, capsys: Capture) -> None:
    table, named = EmbeddingTable.open(work / "table"), ["--names", str(work / "scan")]
    row = table.ids.index(*Names(work / "scan").ids_of("a, [b].png"))
    for query in ("a, [b].png", str(work / "archive" / "a, [b].png")):
        hits = search(work, query, *named)  # no encoder: the vector is in the table
        assert [hit["id"] for hit in hits] == expected(work, row)[:10] and hits[0]["query"] == query
    capsys.readouterr()
    main(["search", "0000.png", "--table", str(work / "table"), "--scan", str(work / "scan"), "-k", "2"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "nearest to 0000.png" and len(shown) == 4
    assert shown[1].split() == ["rank", "score", "id", "path", "label", "mpp", "objid", "group"]
    assert shown[2].split()[0] == "1" and ".png  " in shown[2]


def test_conditions_narrow_the_search(work: Path) -> None:
    table = EmbeddingTable.open(work / "table")
    number = {name: n for n, name in enumerate(table.ids)}

    def found(*conditions: str) -> set[int]:
        where = [part for one in conditions for part in ("--where", one)]
        return {number[hit["id"]] for hit in search(work, table.ids[0], *where, "-k", "50")}

    labels = np.array(table.labels)
    others = set(range(1, COUNT))
    assert found("label=rings") == {n for n in others if labels[n] == "rings"}
    assert found("label != rings") == {n for n in others if labels[n] != "rings"}
    assert found("label=rings,stripes") == others
    mpp = {name: float(hit["mpp"]) for hit in search(work, table.ids[0], "-k", "50") for name in [number[hit["id"]]]}
    assert found("mpp>=0.4", "mpp<=0.6") == {n for n in others if 0.4 <= mpp[n] <= 0.6} != set()
    objid = {number[hit["id"]]: hit["objid"] for hit in search(work, table.ids[0], "-k", "50")}
    assert found(f"objid={objid[5]}") == {5}  # to the last digit
    assert found(f"group={table.groups[3]}") == {n for n in others if table.groups[n] == table.groups[3]}
    own = search(work, table.ids[0], "--leave-out-own-group", "-k", "50")
    assert {number[hit["id"]] for hit in own} == {n for n in others if table.groups[n] != table.groups[0]}


def test_errors_say_what_to_give(work: Path, tmp_path: Path, capsys: Capture) -> None:
    table = ["--table", str(work / "table")]
    some, file = EmbeddingTable.open(work / "table").ids[0], str(work / "archive" / "0000.png")
    assert "neither a file nor an id" in failed(capsys, "nothing.png", *table)
    assert "--encoder RUN" in failed(capsys, file, *table)
    other = encoder(tmp_path / "other", "images")
    for query in (file, some):
        said = failed(capsys, query, *table, "--encoder", str(other))
        assert "another encoder ('run') than" in said and "lejepa-med embed RUN ARCHIVE" in said
    (tmp_path / "bad.png").write_bytes(b"no picture")
    said = failed(capsys, str(tmp_path / "bad.png"), *table, "--encoder", str(work / "run"))
    assert "bad.png cannot be embedded" in said
    for where, message in (
        ("label", "is no condition"),
        ("patient=7", "no column 'patient'. It has: group, label, mpp, objid"),
        ("label>=3", "holds no numbers"),
        ("mpp=thick", "'thick' does not fit the column, which holds numbers"),
        ("label=nowhere", "Not one of the 12 items meets all conditions"),
    ):
        assert message in failed(capsys, some, *table, "--where", where)
    assert "no embedding table" in failed(capsys, some, "--table", str(work / "archive"))


def test_volumes_in_folders_and_the_group_that_they_tell(tmp_path: Path, capsys: Capture) -> None:
    for number in range(3):
        place = tmp_path / "a" / f"s{number}"
        write_series(place, phantom(seed=number), series=number + 1, patient=f"P{number // 2}", spacing=SPACING)
    run = encoder(tmp_path / "run", "mri")
    main(["embed", str(run), str(tmp_path / "a"), "--out", str(tmp_path / "table"), "--workers", "0"])
    shutil.copytree(tmp_path / "a" / "s0", tmp_path / "new")
    given = ["--encoder", str(run)]
    hits = search(tmp_path, str(tmp_path / "new"), *given)
    assert len(hits) == 3 and float(hits[0]["score"]) == pytest.approx(1, abs=1e-4)
    others = search(tmp_path, str(tmp_path / "new"), *given, "--leave-out-own-group")
    assert len(others) == 1 and others[0]["group"] not in {hits[0]["group"]}
    lone = write_nifti(tmp_path / "lone.nii.gz", phantom(seed=8))
    capsys.readouterr()
    assert len(search(tmp_path, str(lone), *given, "--leave-out-own-group")) == 3
    assert f"The table does not have the group of {lone}" in capsys.readouterr().err
    picture = write_pictures(tmp_path / "pictures", count=1) / "0000.png"
    said = failed(capsys, str(picture), "--table", str(tmp_path / "table"), *given)
    assert "0000.png cannot be embedded: colour image. " in said
