"""The lab page in Debian's chromium, against a real service on loopback. Without chromium these tests are skipped."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("playwright", reason="needs playwright (pip install -e '.[dev]')")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from harness.launcher import Launcher
from lejepa_med.cli import main as command_line
from tests.app.helpers import eventually
from tests.data.images import write_archive

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=20_000)

Open = Callable[..., Page]
FEW = (
    "--epochs 2 --views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t --objective.slices 16 "
    "--model.projector-hidden 32 --model.projector-dim 8 --batch-size 8 --train.accelerator cpu --data.workers 0"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="needs chromium: apt-get install -y chromium")
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def lab(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a service that asks nobody for a key, with a folder that the operator has listed.

    It serves `runs`, and the encoder 'trained' with the run that made it, which took four steps.
    """
    place = tmp_path_factory.mktemp("lab")
    shutil.copytree(runs.parent / "archive", place / "archives" / "ward-3")
    shutil.copytree(runs, place / "runs", copy_function=os.link)  # weights are large
    archive = write_archive(place / "pictures", 16)
    command_line(["pretrain", str(archive), "--modality", "images", "--out", str(place / "runs" / "trained"), *FEW])
    with Launcher(environment={"LEJEPA_SALT": "test", "LEJEPA_CACHE": str(place / "cache")}) as launcher:
        launcher.use(place / "runs", place / "data", place, archives_dir=str(place / "archives"))
        address = launcher.service().address
        embed(address)
        yield address


def embed(address: str) -> list[str]:
    """Make the archive 'ward' of the listed folder, with thumbnails; the ids in its order."""
    wanted = {"name": "ward", "folder": "ward-3", "encoder": "images"}
    job = httpx.post(f"{address}/v1/archives", json=wanted, timeout=60).json()["id"]
    assert httpx.get(f"{address}/v1/jobs/{job}?wait=30", timeout=60).json()["state"] == "succeeded"
    return [item["id"] for item in httpx.get(f"{address}/v1/archives/ward/ids").json()["items"]]


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """A function that opens a view of a service; the test fails when the page logs an error or leaves its origin."""
    contexts, wrong = [], []

    def open_view(address: str, view: str = "", *, scheme: str = "light", width: int = 1280) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()

        def check(sent: Request) -> None:
            if not re.match(rf"{re.escape(address)}/|blob:{re.escape(address)}/|data:", sent.url):
                wrong.append(f"left the origin: {sent.url}")

        page.on("request", check)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # a status from 400 is an answer that the page shows; everything else on the console is a fault, CSP above all
        page.on(
            "console",
            lambda told: (
                wrong.append(told.text)
                if told.type in ("error", "warning") and "Failed to load resource" not in told.text
                else None
            ),
        )
        page.goto(f"{address}/#/{view}")
        return page

    yield open_view
    for context in contexts:
        context.close()
    assert wrong == []


def check_accessible(page: Page) -> None:
    """No serious or critical violation of axe-core's rules in the state that the page shows."""
    page.wait_for_timeout(50)
    found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert not found, [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]


def until(page: Page, condition: str, *, seconds: float = 20) -> None:
    """Wait until an expression is true. Playwright's own wait needs eval, which the page's policy forbids."""
    eventually(lambda: bool(page.evaluate(condition)), seconds=seconds)
