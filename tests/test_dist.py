"""What is published: a wheel and an sdist, and each extra alone beside the core, in environments without the checkout.

An environment holds links to the distributions that the wheel asks for by name, and no others, so that a requirement
which pyproject.toml does not name is missed here and not at a user's. Nothing is downloaded. `make dist` runs this.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.data import planted
from tests.data.images import write_archive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
MODALITIES = {"": "images", "mri": "mri", "histology": "histology", "galaxy": "galaxy"}
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, made from the files that git knows, and the wheel, made from the sdist."""
    out, source = (Path(os.environ.get("LEJEPA_DIST", tmp_path_factory.mktemp("dist"))), tmp_path_factory.mktemp("src"))
    out.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    sdist = out / _build("build_sdist", source, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(source / "unpacked", filter="data")
    (unpacked,) = (source / "unpacked").iterdir()
    _build("build_wheel", unpacked, out)
    return out


def _build(what: str, folder: Path, out: Path) -> str:
    command = [sys.executable, "-c", BUILD, what, str(out)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def wheel_of(folder: Path) -> Path:
    return next(folder.glob("*.whl"))


def requirements(wheel: Path, extra: str) -> Iterator[Requirement]:
    """What the wheel asks for with an extra; without one, its core."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(name).decode())
    for line in fields.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def closure(wanted: list[Requirement]) -> set[str]:
    """The distributions that these requirements bring along; one that is not installed here is a failure."""
    found: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        try:
            known = distribution(requirement.name)
        except PackageNotFoundError:
            pytest.fail(f"{requirement.name} is not installed in the environment of the tests")
        for extra in ("", *requirement.extras):
            if (known.metadata["Name"], extra) in found:
                continue
            found.add((known.metadata["Name"], extra))
            for line in known.requires or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    wanted.append(inner)
    return {name for name, _ in found}


def environment(folder: Path, wheel: Path, extra: str) -> Path:
    """A Python with the wheel and what it asks for, and nothing else; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (place,) = folder.glob("lib/python*/site-packages")
    for name in closure(list(requirements(wheel, extra))):
        for file in distribution(name).files or []:
            top = file.parts[0]
            target = Path(str(distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (place / top).exists() and target.exists():
                (place / top).symlink_to(target)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str | Path, folder: Path | None = None, fails: bool = False) -> str:
    """The output of a command line in an environment; away from the checkout, unless `folder` is the checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LEJEPA"))}
    command = [str(python), "-m", "lejepa_med.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder or python.parent, env=clean, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_all_packages_and_their_files(published: Path) -> None:
    with zipfile.ZipFile(wheel_of(published)) as archive:
        names = set(archive.namelist())
    packages = ("app", "data_adapters", "lejepa_med")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not wanted - names
    shared = {name.partition("/share/lejepa-med/")[2] for name in names if ".data/data/" in name}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*") if path.is_file()}
    assert not {"README.md", "CHANGELOG.md", *pages} - shared  # what `lejepa-med docs` builds its site from
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name and ".data/" not in name} == set(packages)


@pytest.mark.parametrize("extra", list(MODALITIES))
def test_an_archive_is_read_with_its_extra_alone(extra: str, published: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel_of(published), extra)
    archive = planted.plant(tmp_path, MODALITIES[extra])
    command = ["scan", archive, "--modality", MODALITIES[extra], "--workers", "2", "--out"]
    run(Path(sys.executable), *command, tmp_path / "all", folder=ROOT)
    run(python, *command, tmp_path / "alone")
    everything, alone = ((tmp_path / name / "rejected.csv").read_text() for name in ("all", "alone"))
    assert sorted(alone.splitlines()) == sorted(everything.splitlines())


def test_without_its_extra_a_modality_says_what_to_install(published: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel_of(published), "")
    archive = planted.plant(tmp_path, "galaxy")
    said = run(python, "scan", archive, "--modality", "galaxy", "--out", tmp_path / "out", fails=True)
    assert "pip install 'lejepa-med[galaxy]'" in " ".join(said.split())


def test_an_encoder_is_trained_and_served(published: Path, tmp_path: Path) -> None:
    pictures = write_archive(tmp_path / "pictures", 12)
    core = environment(tmp_path / "core", wheel_of(published), "")
    small = ["--epochs", "1", "--batch-size", "4", "--backbone", "resnet18", "--views.global-size", "32"]
    run(core, "pretrain", pictures, "--modality", "images", "--out", tmp_path / "runs" / "one", *small)
    run(core, "embed", tmp_path / "runs" / "one", pictures, "--out", tmp_path / "table")
    assert "lejepa-med[serve]" in run(core, "serve", tmp_path / "runs", fails=True)
    python = environment(tmp_path / "serve", wheel_of(published), "serve")
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    done = subprocess.run(
        [str(python), str(script), str(tmp_path / "runs"), str(tmp_path / "data"), str(next(pictures.rglob("*.png")))],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LEJEPA"))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


SERVE = """
import socket, subprocess, sys, time
from pathlib import Path
from lejepa_med.client import Client, UnreachableError

runs, data, picture = sys.argv[1:]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "lejepa_med.cli", "serve", runs, "--port", str(port), "--data-dir", data]
with subprocess.Popen(command) as service, Client(f"http://127.0.0.1:{port}") as client:
    try:
        while service.poll() is None:
            try:
                (found,) = client.embed(Path(picture)).items
                sys.exit(len(found.vector) != 512)
            except UnreachableError:
                time.sleep(0.2)
        sys.exit("the service ended")
    finally:
        service.terminate()
"""


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("client", "lejepa_med.client"),
        ("lance", "lancedb"),
        ("postgres", "psycopg"),
        ("otel", "opentelemetry.sdk"),
        ("onnx", "onnxruntime"),
    ],
)
def test_the_other_extras_bring_their_library(extra: str, module: str, published: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel_of(published), extra)
    subprocess.run([str(python), "-c", f"import {module}"], check=True, cwd=tmp_path)
    assert "broken" not in run(python, "doctor", "--modality", "images")
