"""lejepa-med doctor: what is missing and the command that brings it, the exit code, and never the salt."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from data_adapters.errors import UserError
from data_adapters.registry import BUILT_IN
from lejepa_med.cli import doctor, main
from lejepa_med.cli.doctor import Finding, check_package, examine, failed


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
    (tmp_path / "tests.py").write_text("raise OSError('a package of tests beside it')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check_package("core", Requirement("half-there"), install="x").state == "ok"  # nothing names its module
    (info / "top_level.txt").write_text("half_there\ntests\n")
    found = check_package("core", Requirement("half-there"), install="x")
    assert found.state == "broken" and "libx.so.1" in found.detail
    assert found.remedy == "pip install --force-reinstall 'half-there==1.0'"


@pytest.mark.parametrize("modality", sorted(BUILT_IN))
def test_a_full_installation_is_whole(modality: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--modality", modality])  # raises SystemExit where anything is wrong
    shown = capsys.readouterr().out
    assert "BROKEN" not in shown and "MISSING" not in shown
    assert ("pynrrd: " in shown) == modality.startswith("mri") and "numpy: " in shown


def test_every_section_of_a_full_installation_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    assert "BROKEN" not in shown and "MISSING" not in shown and "not imported" not in shown


# Hides modules, and of some packages the metadata too, as if they were not installed; then examines three modalities.
WITHOUT = """
import sys
from lejepa_med.cli import main

MODULES, PACKAGES = {"nrrd", "gdcm", "astropy", "openslide"}, {"python-gdcm", "astropy"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in MODULES else self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        found = getattr(self.finder, "find_distributions", lambda context: ())
        return () if context.name in PACKAGES else found(context)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for modality in ("mri", "mri3d", "galaxy", "histology", "images"):
    try:
        main(["doctor", "--modality", modality])
    except SystemExit as ended:
        print("exit code", ended.code, "for", modality)
"""


def test_a_missing_package_is_named_with_its_command() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    faults = re.findall(r"^(BROKEN|MISSING) +(\w+) +([\w-]+): .*\n +-> (.*)", done.stdout, re.MULTILINE)
    installed = importlib.metadata.version
    nrrd = f"pip install --force-reinstall 'pynrrd=={installed('pynrrd')}'"
    healpix = f"pip install --force-reinstall 'astropy-healpix=={installed('astropy-healpix')}'"
    openslide = f"pip install --force-reinstall 'openslide-python=={installed('openslide-python')}'"
    assert faults == [
        ("MISSING", "mri", "python-gdcm", "pip install 'lejepa-med[mri]'"),
        ("BROKEN", "mri", "pynrrd", nrrd),
        ("MISSING", "mri3d", "python-gdcm", "pip install 'lejepa-med[mri]'"),
        ("BROKEN", "mri3d", "pynrrd", nrrd),
        ("MISSING", "galaxy", "astropy", "pip install 'lejepa-med[galaxy]'"),
        ("BROKEN", "galaxy", "astropy-healpix", healpix),  # it imports astropy, and pip installs that with it
        ("BROKEN", "histology", "openslide-python", openslide),
    ]
    ended = [f"exit code 1 for {modality}" for modality in ("mri", "mri3d", "galaxy", "histology")]
    assert re.findall("exit code .*", done.stdout) == ended and not done.stderr


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
    assert "readable by you alone" in salt_line()
    file.chmod(0o644)
    assert "can be read by others" in salt_line()


def test_a_full_or_closed_cache_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEJEPA_CACHE", "off")
    assert doctor._cache().detail.startswith("off")
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path / "not" / "yet"))
    assert "GiB free" in doctor._cache().detail and not (tmp_path / "not").exists()
