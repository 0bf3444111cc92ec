"""The frame of the page: views, states, keys, jobs, and an archive that is embedded from the browser."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from app.api.keys import create
from harness.launcher import Launcher
from tests.app.helpers import png
from tests.app.web.conftest import Open, check_accessible

VIEWS = {
    "": "Look, label, probe",
    "archives": "Archives",
    "archives/table/about": "table",
    "embed": "Embed an archive",
    "encoders": "Encoders",
    "encoders/mri": "mri",
    "probes": "Probes",
    "jobs": "Jobs",
    "keys": "Keys",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_are_accessible_in_both_themes_and_at_1024_px(lab: str, open_page: Open, scheme: str) -> None:
    page = open_page(lab, scheme=scheme, width=1024)
    for view, title in VIEWS.items():
        page.goto(f"{lab}/#/{view}")
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.locator(".spinner")).to_have_count(0)
        check_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1024, view
        expect(page).to_have_title(re.compile(title))


def test_page_is_small_and_its_policy_allows_nothing_inline(lab: str) -> None:
    with httpx.Client(base_url=lab) as client:
        first = client.get("/")
        policy = first.headers["content-security-policy"]
        assert "unsafe" not in policy and "script-src 'self'" in policy and "style-src 'self'" in policy
        names, size = ["/web/style.css", "/web/main.js", "/web/icon.svg"], len(first.content)
        for name in names:  # modules are appended as they are found
            answer = client.get(name)
            assert answer.status_code == 200, name
            size += len(answer.content)
            base = name.rsplit("/", 1)[0]
            for found in re.findall(r'(?:from|import)\s*"\./([\w./-]+)"', answer.text):
                names += [f"{base}/{found}"] if f"{base}/{found}" not in names else []
        assert len(names) > 10 and size < 300_000
        for other in ("/web/../pages.py", "/web/%2e%2e/routes/pages.py", "/web/docs.html.j2", "/web/vendor/README.md"):
            assert client.get(other).status_code == 404


def test_keyboard_reaches_the_content_and_every_view(lab: str, open_page: Open) -> None:
    page = open_page(lab)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("link", name="Encoders", exact=True).press("Enter")
    expect(page.get_by_role("heading", level=1, name="Encoders")).to_be_focused()


def test_every_action_has_a_curl_and_a_python_call(lab: str, open_page: Open) -> None:
    page = open_page(lab, "encoders/mri")
    page.get_by_text("Do this from a script").click()
    expect(page.get_by_label("curl call").first).to_contain_text(f"curl '{lab}/v1/encoders/mri'")
    expect(page.get_by_label("Python call").first).to_contain_text(f'with Client("{lab}") as service:')


def test_upload_becomes_an_archive_with_its_rejected_files_listed(lab: str, open_page: Open, tmp_path: Path) -> None:
    folder = tmp_path / "night 3"
    (folder / "deep").mkdir(parents=True)
    for number in range(5):
        (folder / "deep" / f"{number}.png").write_bytes(png(number, bright=number % 2 == 0))
    (folder / "cut.png").write_bytes(png()[:60])
    page = open_page(lab, "embed")
    page.get_by_label("Folder of images").set_input_files(folder)
    expect(page.get_by_text("6 files")).to_be_visible()
    page.get_by_label("Name of the archive").fill("from-browser")
    page.get_by_label("Encoder").select_option("images")
    check_accessible(page)
    page.get_by_role("button", name="Embed", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="from-browser is ready")).to_be_visible(timeout=60_000)
    rejected = page.get_by_role("row", name=re.compile("cut.png"))
    expect(rejected).to_be_visible()  # with its name inside of the folder, its cause and its remedy
    assert len(rejected.get_by_role("cell").nth(2).inner_text()) > 10
    check_accessible(page)
    assert httpx.get(f"{lab}/v1/archives/from-browser").json()["count"] == 5


def test_jobs_are_listed_with_their_remedies(lab: str, open_page: Open) -> None:
    # cut-off pictures only, so the job fails and says what to do
    sent = httpx.post(
        f"{lab}/v1/uploads",
        files=[("files", ("a.png", png()[:60]))],
        data={"encoder": "images", "embed": "true", "archive": "nothing"},
    ).json()
    ended = httpx.get(f"{lab}/v1/jobs/{sent['id']}?wait=30", timeout=60).json()
    assert ended["state"] == "failed"
    page = open_page(lab, "jobs?state=failed")
    row = page.get_by_role("row", name=re.compile(re.escape(ended["error"]["detail"])))
    expect(row.first).to_contain_text(ended["error"]["remedy"])
    row.first.get_by_role("button").click()
    expect(page.get_by_role("dialog")).to_contain_text(sent["id"])
    check_accessible(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_key_prompt_and_what_a_scope_does_not_allow(launcher: Launcher, open_page: Open, tmp_path: Path) -> None:
    reader, _ = create(name="reader", scopes=["probe"], data_dir=tmp_path / "data")
    admin, _ = create(name="head", scopes=["admin"], data_dir=tmp_path / "data")
    address = launcher.service(auth="on").address
    page = open_page(address, "embed")
    expect(page.get_by_role("heading", level=1, name="This service asks for a key")).to_be_visible()
    check_accessible(page)
    page.get_by_label("API key").fill("lj_0123456789abcdef_" + "x" * 43)
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("alert")).to_contain_text("not known")
    page.get_by_label("API key").fill(reader)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_label("Image files").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png()})
    page.get_by_label("Encoder").select_option("images")
    page.get_by_role("button", name="Embed", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Your key does not allow this")
    check_accessible(page)
    page.get_by_role("button", name="Forget my key").click()
    page.get_by_label("API key").fill(admin)
    page.get_by_role("button", name="Use this key").click()
    page.get_by_role("link", name="Keys").click()
    page.get_by_label("Whose key is it?").fill("reading room")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_text("Copy this key now")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("reading room"))).to_be_visible()
    check_accessible(page)


def test_a_service_that_stops_answering_is_told_and_comes_back(launcher: Launcher, open_page: Open) -> None:
    service = launcher.service()
    port = int(service.address.rsplit(":", 1)[1])
    page = open_page(service.address, "archives")
    expect(page.get_by_text("table", exact=True)).to_be_visible()
    service.end()
    page.get_by_role("link", name="Probes").click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    check_accessible(page)
    launcher._start("app.main", port=port).wait_for("Uvicorn running")
    expect(page.get_by_text("No probe yet")).to_be_visible()
