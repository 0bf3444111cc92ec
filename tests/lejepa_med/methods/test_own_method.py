"""A method of one's own, `./file.py:Class` or installed: trained by a command, recorded, and never run unasked."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
import yaml

from lejepa_med.cli import main
from lejepa_med.config import load_config, read_settings
from lejepa_med.methods.registry import own_settings, settings_class
from lejepa_med.models.folder import load_encoder, read_info
from lejepa_med.study.runs import read_run
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import interrupted, losses, tiny

MANUAL = Path(__file__).parents[3] / "docs" / "method.md"
[PRINTED] = re.findall(r"```python\n(# simsiam\.py\n.*?)```", MANUAL.read_text(), flags=re.DOTALL)
OWN = {"method": "./simsiam.py:SimSiam", "hidden": 16}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example of the manual, in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "simsiam.py"
    file.write_text(PRINTED)
    return file


def command(pictures: Path, *flags: str) -> list[str]:
    sizes = "--views.n-global 2 --views.global-size 32 --backbone resnet10t --epochs 1 --batch-size 8 --data.workers 0"
    sizes += " --model.projector-hidden 32 --train.accelerator cpu --no-monitor.online"
    return ["pretrain", str(pictures), "--modality", "images", "--out", "run", *sizes.split(), *flags]


def test_the_printed_example_trains_by_the_command_of_a_user(
    pictures: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(PRINTED.splitlines()) < 50
    own = ["--objective.method", "./simsiam.py:SimSiam", "--objective.hidden", "16"]
    main(command(pictures, *own))
    records = read_lines(Path("run/metrics.jsonl"))
    assert len(records) == 6 and all(-1 <= record["similarity"] <= 1 for record in records)
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["objective"]["method"] == "simsiam.py:SimSiam" and saved["objective"]["hidden"] == 16
    assert saved["objective"]["code_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert saved["model"]["projector_dim"] == 256 and str(file.parent) not in Path("run/config.yaml").read_text()
    assert read_settings(Path("run/config.yaml"))["objective"]["method"] == f"{file}:SimSiam"
    info = read_info(Path("run/encoder"))
    assert (
        info["objective"]["method"] == "simsiam.py:SimSiam" and "SimSiam" in Path("run/encoder/README.md").read_text()
    )
    assert str(file.parent) not in Path("run/report.html").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(command(pictures, "--objective.method", "./simsiam.py:SimSiam", "--help"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "--objective.hidden" in shown and "width of the predictor's hidden layer" in shown
    assert "--objective.lamb" not in shown and "without gradient to the target" in shown
    with pytest.raises(SystemExit):
        main(command(pictures, "--objective.method", "./simsiam.py:SimSiam", "--objective.hiden", "8", "--overwrite"))
    assert "no setting 'hiden'. Did you mean --objective.hidden?" in capsys.readouterr().err.replace("; ", " ")
    file.unlink()  # neither the encoder nor a look at the run needs it
    assert load_encoder(Path("run")).dim == 512
    assert read_run(Path("run")).lamb is None


def test_reading_a_run_folder_runs_no_code_of_a_method(pictures: Path, file: Path) -> None:
    pretrain(tiny(pictures, Path("run"), objective=OWN, train={"epochs": 0}))
    file.write_text("raise SystemExit('it was run')")
    config = load_config(Path("run/config.yaml"))
    assert own_settings(config.objective)["hidden"] == 16


def test_it_resumes_bit_for_bit_and_only_with_the_same_file(
    pictures: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halves = (tiny(pictures, Path(name), objective=OWN) for name in ("whole", "halves"))
    pretrain(whole)
    interrupted(halves, monkeypatch, step=3)
    text = file.read_text()
    file.write_text(text + "# changed\n")
    flags = ["--objective.method", "./simsiam.py:SimSiam", "--objective.hidden", "16", "--resume"]
    with pytest.raises(SystemExit):
        main(["pretrain", str(pictures), "--modality", "images", "--out", "halves", *flags])
    assert "not the file that this run began with" in capsys.readouterr().err
    file.write_text(text)
    main(["pretrain", str(pictures), "--modality", "images", "--out", "halves", *flags])
    assert losses(Path("halves")) == losses(Path("whole"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SimSiam = 3", "no class 'SimSiam'"),
        ("class SimSiam: pass", "declares no method"),
        ("import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
        ("import beside", "not recorded with the run"),
    ],
)
def test_a_file_that_declares_no_method_is_refused(
    text: str, message: str, pictures: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    Path("beside.py").write_text("")
    with pytest.raises(SystemExit):
        main(command(pictures, "--objective.method", "./simsiam.py:SimSiam"))
    assert message in capsys.readouterr().err and not Path("run").exists()


def test_an_installed_plug_in_is_found_by_its_name(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = file.parent / "site"
    about = place / "siam-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: siam\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lejepa_med.methods]\nsimsiam = siam_plugin:SimSiam\n")
    (place / "siam_plugin.py").write_text(PRINTED)
    monkeypatch.syspath_prepend(str(place))
    found, digest = settings_class("simsiam")
    assert found.__module__ == "siam_plugin" and digest is None
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    assert "simsiam" in capsys.readouterr().out
    del sys.modules["siam_plugin"]
