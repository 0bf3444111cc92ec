"""The lab page in Debian's chromium, against a real service on loopback. Without chromium these tests are skipped."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright (pip install -e '.[dev]')")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from benchmarks.launcher import Launcher

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=20_000)

Open = Callable[..., Page]


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
    """Address of a service over `runs` that asks nobody for a key, with a folder that the operator has listed."""
    place = tmp_path_factory.mktemp("lab")
    shutil.copytree(runs.parent / "archive", place / "archives" / "ward-3")
    with Launcher(environment={"LEJEPA_SALT": "test", "LEJEPA_CACHE": str(place / "cache")}) as launcher:
        launcher.use(runs, place / "data", place, archives_dir=str(place / "archives"))
        yield launcher.service().address


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
