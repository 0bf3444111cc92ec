"""lejepa-med doctor: what is missing and the command that brings it, the exit code, and never the salt."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from data_adapters.errors import UserError
from lejepa_med import doctor
from lejepa_med.cli import main
from lejepa_med.doctor import Finding, check_package, examine, failed


def test_a_package_is_there_too_old_or_missing() -> None:
    found = check_package("core", Requirement("numpy>=1"), install="x")
    assert (found.state, found.detail) == ("ok", importlib.metadata.version("numpy"))
    old = check_package("core", Requirement("numpy>=99"), install="x")
    assert old.state == "broken" and old.remedy == "pip install 'numpy>=99'"
    gone = check_package("mri", Requirement("no-such-package"), install="pip install 'lejepa-med[mri]'")
    assert (gone.state, gone.remedy) == ("missing", "pip install 'lejepa-med[mri]'")


def test_a_package_that_cannot_be_imported_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "half_there-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-there\nVersion: 1.0\n")
    (tmp_path / "half_there.py").write_text("raise OSError('libx.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check_package("core", Requirement("half-there"), install="x")
    assert found.state == "broken" and "libx.so.1" in found.detail
    assert found.remedy == "pip install --force-reinstall 'half-there==1.0'"


def test_the_sections_are_those_of_the_package() -> None:
    names = {section: {r.name for r in listed} for section, listed in doctor._sections().items()}
    assert {"torch", "timm", "numpy"} <= names["core"] and "pydicom" not in names["core"]
    assert {"pydicom", "highdicom"} <= names["mri"] and "astropy" in names["galaxy"]
    assert "openslide-python" in names["histology"] and "fastapi" in names["serve"]


def test_only_the_core_and_what_was_asked_for_fail() -> None:
    lost = [Finding("mri", "pydicom", "missing", ""), Finding("system", "gpu", "note", "")]
    assert not failed(lost) and not failed(lost, modality="galaxy") and failed(lost, modality="mri")
    assert failed([Finding("core", "torch", "broken", "")])


def test_the_command_prints_and_sets_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["numpy>=2", "pydicom>=3; extra == 'mri'", "no-such-package; extra == 'mri'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path / "cache"))
    main(["doctor"])
    shown = capsys.readouterr().out
    assert f"numpy: {importlib.metadata.version('numpy')}" in shown and sys.version.split()[0] in shown
    assert "MISSING mri" in shown and "-> pip install 'lejepa-med[mri]'" in shown
    assert "bf16" in shown and "GiB free" in shown and "gpu" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--modality", "mri"])
    assert stopped.value.code == 1
    main(["doctor", "--modality", "images"])
    assert "mri" not in capsys.readouterr().out.split("MISSING")[-1].split("images", 1)[1]
    lines[0] = "numpy>=99"
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--modality", "images"])
    assert stopped.value.code == 1
    with pytest.raises(UserError, match="There is no modality 'xray'"):
        list(examine("xray"))


def test_the_salt_is_told_of_and_never_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy"])

    def salt_line() -> str:
        main(["doctor", "--modality", "images"])
        shown = capsys.readouterr().out
        assert "hush-hush" not in shown
        return next(line for line in shown.splitlines() if "salt" in line)

    monkeypatch.setenv("LEJEPA_SALT", "hush-hush")
    assert "from LEJEPA_SALT" in salt_line()
    monkeypatch.delenv("LEJEPA_SALT")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "none yet" in salt_line() and not list(tmp_path.iterdir())  # looking makes none
    file = tmp_path / "lejepa-med" / "salt"
    file.parent.mkdir()
    file.write_text("hush-hush")
    file.chmod(0o600)
    assert "for your eyes only" in salt_line()
    file.chmod(0o644)
    assert "can be read by others" in salt_line()


def test_a_full_or_closed_cache_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEJEPA_CACHE", "off")
    assert doctor._cache().detail.startswith("off")
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path / "not" / "yet"))
    assert "GiB free" in doctor._cache().detail and not (tmp_path / "not").exists()
