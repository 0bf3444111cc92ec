"""lejepa-med docs: the site builds from the pages as they are, without a broken link, and is whole by itself."""

import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from app import documentation
from data_adapters.errors import UserError
from lejepa_med.cli import main

ROOT = Path(__file__).parents[2]
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?:|<link\b[^>]*\brel=["']?(?:stylesheet|preload|icon)[^>]*href=["']?https?:|@import\s+url\(["']?https?:|url\(["']?https?:"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    main(["docs", "--out", str(out)])  # strict: a link to a page or heading that is not there fails
    return out / "site"


def test_every_page_is_in_the_site_and_in_its_menu(site: Path) -> None:
    menu = (ROOT / "docs" / "zensical.toml").read_text()
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "CHANGELOG.md"]:
        name = page.relative_to(ROOT)
        assert (site / name).with_suffix(".html").is_file(), name
        assert f'"{name}"' in menu, f"{name} is missing in the menu of docs/zensical.toml"


def test_the_reference_shows_docstrings_and_routes(site: Path) -> None:
    python = (site / "docs/reference/python.html").read_text()
    assert "LoadedEncoder" in python and "SIGReg" in python and "Raises" in python
    routes = (site / "docs/reference/rest.html").read_text()
    assert "POST /v1/probes" in routes and "Scope:" in routes


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 20
    for file in files:
        assert not (found := ELSEWHERE.search(file.read_text(encoding="utf-8"))), (file, found)


def test_the_site_is_served_on_loopback(site: Path) -> None:
    script = f"from pathlib import Path; from app.documentation import serve; serve(Path({str(site)!r}), port=0)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=10) as answer:
            assert b"Train an image encoder" in answer.read()
    finally:
        process.kill()
        process.communicate()


def test_missing_pages_and_a_taken_port_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(UserError, match=r"Port \d+ cannot be used.*--port"):
            documentation.serve(tmp_path, port=busy.getsockname()[1])
    monkeypatch.setattr(documentation, "ROOT", tmp_path)
    monkeypatch.setattr(documentation, "INSTALLED", tmp_path / "share")
    with pytest.raises(UserError, match="holds the pages"):
        documentation.sources()
