"""`lejepa-med check` and the warning of `lejepa-med probe`, as a user meets them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe


def test_check_names_the_scanner_in_print_page_and_exit_code(
    confounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = confounded / "archive" / "labels.csv"
    with pytest.raises(SystemExit) as ended:
        main(["check", str(confounded / "table"), str(labels), "--leave-out", "scanner", "--out", str(tmp_path / "c")])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "confounded with 'scanner'" in shown and "100% of the images labelled 'b' have scanner s1" in shown
    report = json.loads((tmp_path / "c" / "check.json").read_text())
    assert report["confounded"] == ["scanner"] and report["label"]["prediction"]["auroc"] > 0.8
    assert [one["column"] for one in report["columns"]] == ["scanner"]  # not `note`, which is another text in each row
    assert report["columns"][0]["prediction"]["auroc"] > 0.9
    assert report["leave_out"]["unseen"]["linear"] is None  # class b has no second scanner to be tested on
    assert "cannot be measured" in shown
    page = (tmp_path / "c" / "check.html").read_text()
    assert "confounded with &#39;scanner&#39;" in page and "<script" not in page


def test_the_table_keeps_the_columns_without_their_texts_and_a_probe_warns(
    confounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = pq.read_table(confounded / "table" / "_about" / "context.parquet")
    assert context.column_names == ["id", "scanner"]
    assert not {"s1", "s2"} & set(context.column("scanner").to_pylist())
    assert len(set(EmbeddingTable.open(confounded / "table").context["scanner"])) == 2
    with pytest.raises(SystemExit):
        main(["check", str(confounded / "table")])  # the table's own labels and columns
    assert "confounded with 'scanner'" in capsys.readouterr().out
    bare = tmp_path / "labels.csv"
    rows = [line.split(",")[:3] for line in (confounded / "archive" / "labels.csv").read_text().splitlines()]
    bare.write_text("\n".join(",".join(row) for row in rows) + "\n")
    main(
        [
            "probe",
            str(confounded / "table"),
            str(bare),
            "--archive",
            str(confounded / "archive"),
            "--out",
            str(tmp_path / "p"),
        ]
    )
    assert "confounded with 'scanner'" in capsys.readouterr().out.replace("\n", " ")
    warnings = Probe.load(tmp_path / "p").metrics["warnings"]
    assert any("confounded with 'scanner'" in text for text in warnings)


def test_what_cannot_be_checked_is_refused_with_what_to_do(
    confounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, cause in (
        (["--columns", "site"], "no column 'site'"),
        (["--leave-out", "site"], "no column 'site' to leave out"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["check", str(confounded / "table"), *arguments])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and cause in error and "scanner" in error
