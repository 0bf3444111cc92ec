"""Tables as labs write them: encodings, separators, headers, missing cells, numbers, and arrays of labels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_adapters.errors import BadFileError, UserError
from data_adapters.tables import MISSING, Table, array_labels, escaped, meaning, one_style

ROWS = [("a/x.png", "01"), ("a/y.png", "02")]


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


def cells(file: Path) -> list[dict[str, str]]:
    return [row.cells for row in Table(file)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["path{}label", " Path {}LABEL", '"path"{}"label"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_way_to_save_one_table_reads_the_same(
    tmp_path: Path, encoding: str, separator: str, header: str, end: str
) -> None:
    lines = [header.format(separator), *(f"{path}{separator} {label} " for path, label in ROWS)]
    file = write(tmp_path / "t.csv", end.join(lines) + end, encoding)
    assert cells(file) == [{"path": path, "label": label} for path, label in ROWS]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sep=;\nPath;Label\na;b\n", ["path", "label"]),
        ("path;label,of two\na;b\n", ["path", "label,of two"]),
        ("path,a;b\na,b\n", ["path", "a;b"]),
        ("\npath\na\n", ["path"]),
        (",path,label\n0,a,b\n", ["", "path", "label"]),  # the index that pandas writes
        ("path,R,r,RA\na,1,2,3\n", ["path", "R", "r", "ra"]),
        ("path;label;;\na;b\n", ["path", "label"]),
        ("path," + ",".join(f"feature_{k}" for k in range(9000)) + ",label\n" + "a," + "0," * 9000 + "b\n", None),
    ],
)
def test_the_header_decides_the_separator(tmp_path: Path, text: str, names: list[str] | None) -> None:
    table = Table(write(tmp_path / "t.csv", text))
    assert (table.names == names if names else len(table.names) == 9002) and len(list(table)) == 1


def test_row_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", 'path,label\na,x\n\n"b","two\nlines"\n,\nc,y\n,,\n\n')
    assert [(row.number, row.cells["path"]) for row in Table(file)] == [(2, "a"), (4, "b"), (6, "c")]


@pytest.mark.parametrize(
    ("content", "cause", "remedy"),
    [
        ("path,label\na,x\nMüller,y\n".encode("latin-1"), "row 3 is not UTF-8; as Windows-1252.*Müller", "CSV UTF-8"),
        ("Größe,path\n1,a\n".encode("cp1252"), "row 1 is not UTF-8", "iconv"),
        ("path,label\na,x\n".encode("utf-16-le"), "UTF-16 without a byte order mark", "UTF-8"),
        (b"PK\x03\x04" + bytes(100), "an Excel workbook", "CSV UTF-8"),
        (b"PAR1 but cut off", "cannot be read", "Parquet"),
        (b"", "is empty", "header"),
        (b"path,label\na,x\nb\n", "row 3 has 1 cells, the header has 2", "one cell for each column"),
        (b"path,label\na,x\nb,0,5\n", "row 3 has 3 cells", "decimal comma"),
        (b"path,label,Label\na,x,y\n", "the column 'label' 2 times .columns 2, 3", "Keep one"),
        (b'path,label\na,"x\nb,y\n', "row 2 and what follows", "Close every quote"),
        (b"file,label\na,x\n", "no column 'path' .it has: file, label", "Add it"),
    ],
)
def test_what_is_no_such_table_is_refused_with_row_and_remedy(
    tmp_path: Path, content: bytes, cause: str, remedy: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=cause) as caught:
        list(Table(tmp_path / "t.csv"))
    assert remedy in caught.value.remedy
    with pytest.raises(UserError) as hidden:
        list(Table(tmp_path / "t.csv", public=True))
    assert not any(word in str(hidden.value) for word in (str(tmp_path), "Müller", "file, label"))


def test_words_for_missing_are_counted_by_column_and_can_be_escaped(tmp_path: Path) -> None:
    text = "path,label,group\n" + "".join(f"{n},{word},01\n" for n, word in enumerate(sorted(MISSING)))
    table = Table(write(tmp_path / "t.csv", text + "NA,none,NA\nb,\\NA,7\n"))
    rows = list(table)
    assert [row.cells["label"] for row in rows] == [""] * len(MISSING) + ["none", "NA"]
    assert table.missing.counts("label") == dict.fromkeys(MISSING, 1) and table.missing.counts("group") == {"NA": 1}
    assert (rows[-2].cells["path"], rows[-2].cells["group"], rows[0].cells["group"]) == ("NA", "", "01")
    assert any("1 row with 'NA' in the column 'group'" in note for note in table.missing.notes())
    assert all(meaning(escaped(word)) == word for word in MISSING - {""}) and escaped("x") == "x"


def test_parquet_means_what_csv_means(tmp_path: Path) -> None:
    columns = {
        "path": ["a", "b", "c", "d"],
        "label": pa.array([1.0, 2.0, None, float("nan")]),
        "group": pa.array(["01", None, "NA", "x"]).dictionary_encode(),
        "item": pa.array([3.0, None, None, None]),
        "seen": [True, False, None, True],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet")
    rows = list(table)
    assert [row.number for row in rows] == [2, 3, 4, 5]
    assert [table.class_name("label", row.cells["label"]) for row in rows] == ["1", "2", "", ""]
    assert [row.cells["group"] for row in rows] == ["01", "", "", "x"]
    assert (rows[0].cells["item"], rows[0].cells["seen"]) == ("3", "True")
    assert table.missing.counts("label") == {"": 1, "nan": 1}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["1", "1.0", "0"], ["1", "1", "0"]),
        (["01", "1", "1.0"], ["01", "1", "1.0"]),  # codes, not numbers
        (["1.0", "x"], ["1.0", "x"]),
        (["1.5", "1.0"], ["1.5", "1"]),
        (["1.10", "1.1"], ["1.10", "1.1"]),
        (["587722952767439450", "1.0"], ["587722952767439450", "1"]),
        (["12345678901234567890", "1.0"], ["12345678901234567890", "1.0"]),  # beyond 64 bits: a name
    ],
)
def test_classes_written_as_floats_and_as_integers_are_one(given: list[str], found: list[str]) -> None:
    assert one_style(given) == found


def test_numbers_codes_and_decimal_commas_of_further_columns(tmp_path: Path) -> None:
    text = (
        "path;mpp;site;far;free;age;long\na;0,5;01;587722952767439450;1,5 mm;4,5;12345678901234567890\n"
        "b;1;10;2;3;unknown;7\n"
    )
    table = Table(write(tmp_path / "t.csv", text))
    rows = list(table)
    table.check_numbers(table.columns)
    columns = ("mpp", "site", "far", "free", "age", "long")
    found = [[table.value(name, row.cells[name]) for name in columns] for row in rows]
    assert found == [
        [0.5, "01", 587722952767439450, "1,5 mm", 4.5, "12345678901234567890"],
        [1.0, "10", 2, 3.0, "unknown", "7"],
    ]
    quoted = Table(write(tmp_path / "q.csv", 'path,mpp\na,"0,25"\nb,"1,5"\n'))
    assert [quoted.value("mpp", row.cells["mpp"]) for row in list(quoted)] == [0.25, 1.5]


@pytest.mark.parametrize(
    "text",
    [
        'path,n\na,"1,234"\nb,"2,500"\n',  # thousands, or a decimal comma
        'path,n\na,"1,234,567"\n',
        "path;n\na;1.234,5\n",
        "path;n\na;0,5\nb;0.5\n",
    ],
)
def test_commas_that_may_part_thousands_are_refused(tmp_path: Path, text: str) -> None:
    table = Table(write(tmp_path / "t.csv", text))
    list(table)
    with pytest.raises(UserError, match=r"'n' \(row 2\).*decimal comma or thousands"):
        table.check_numbers(["n"])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.array([0, 2, 1]), ["0", "2", "1"]),
        (np.array([[0], [2], [1]]), ["0", "2", "1"]),
        (np.zeros((3, 1, 1, 1), np.uint8), ["0", "0", "0"]),
        (np.array([[1, 0], [0, 1], [1, 0]]), ["0", "1", "0"]),
        (np.array([1.0, np.nan, 0.5], np.float32), ["1", None, "0.5"]),
        (np.array([b"Sa", b"NA", b" E "]), ["Sa", None, "E"]),
        (np.array(["Größe".encode(), b"1.0", b""], object), ["Größe", "1.0", None]),
        (np.array([b"1.0", b"1", b"2"], object), ["1", "1", "2"]),
    ],
)
def test_labels_in_arrays(values: np.ndarray, labels: list[str | None]) -> None:
    assert array_labels(values, 3) == labels


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (np.arange(2), "do not belong"),
        (np.arange(4), "do not belong"),
        (np.array(1), "do not belong"),
        (np.array([[1, 1], [0, 1], [0, 0]]), "several labels"),
        (np.array([[0.2, 0.8]] * 3), "neither one an image nor one-hot"),
        (np.array([1, np.inf, 0]), "infinite"),
        (np.array([b"\xff", b"a", b"b"]), "not UTF-8"),
    ],
)
def test_arrays_that_are_no_labels_are_refused(values: np.ndarray, cause: str) -> None:
    with pytest.raises(BadFileError, match=cause) as caught:
        array_labels(values, 3)
    assert caught.value.remedy
