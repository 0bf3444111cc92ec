"""The map of an archive: points, lasso, thumbnails, colours, arrangement by neighbours; by mouse and by keyboard."""

import re

from playwright.sync_api import Page, expect

from tests.app.web.conftest import Open, check_accessible, until

PLACE = """row => {
    const place = document.querySelector('.canvas-place'), box = place.getBoundingClientRect();
    const [x, y] = place.scatter.at(row), ratio = place.scatter.ratio;
    return [box.left + x / ratio, box.top + y / ratio];
}"""
SCATTER = "document.querySelector('.canvas-place').scatter"


def place_of(page: Page, row: int) -> tuple[float, float]:
    """Where a point is drawn, in pixels of the window."""
    x, y = page.evaluate(PLACE, row)
    return x, y


def open_map(open_page: Open, lab: str, **options: object) -> Page:
    page = open_page(lab, "archives/ward/map", **options)
    until(page, "document.querySelector('.canvas-place')?.scatter?.count === 24")
    page.wait_for_timeout(100)
    return page


def test_points_are_picked_lassoed_and_shown_with_their_thumbnails(lab: str, open_page: Open) -> None:
    page = open_map(open_page, lab)
    check_accessible(page)
    sheet = page.get_by_role("complementary", name="Chosen images")
    page.mouse.move(*place_of(page, 3))
    expect(sheet.locator("img").first).to_be_visible()  # hover shows the thumbnail
    page.mouse.click(*place_of(page, 3))
    expect(sheet.get_by_role("heading", name="1 image chosen")).to_be_visible()
    sheet.get_by_role("button", name="Find similar").click()
    expect(sheet.get_by_role("heading", name="24 images chosen")).to_be_visible()
    sheet.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Lasso").click()
    x, y = place_of(page, 3)
    page.mouse.move(x - 9, y - 9)
    page.mouse.down()
    for dx, dy in ((9, -9), (9, 9), (-9, 9)):
        page.mouse.move(x + dx, y + dy, steps=3)
    page.mouse.up()
    expect(sheet.get_by_role("heading", name=re.compile(r"^\d+ images? chosen"))).to_be_visible()
    chosen = page.evaluate(f"[...{SCATTER}.selected].flatMap((is, row) => is ? [row] : [])")
    inside = [row for row in range(24) if all(abs(a - b) < 9 for a, b in zip(place_of(page, row), (x, y), strict=True))]
    assert 3 in chosen and chosen == inside
    expect(sheet.locator(".pick img")).to_have_count(len(chosen))
    check_accessible(page)


def test_keyboard_moves_zooms_and_chooses(lab: str, open_page: Open) -> None:
    page = open_map(open_page, lab)
    box = page.get_by_role("application", name=re.compile("Map of 24 images"))
    box.focus()
    before = place_of(page, 0)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(60)
    assert place_of(page, 0)[0] == before[0] - 60
    for key in ("+", "-", "f", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("heading", name="24 images chosen")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Choose images")).to_be_visible()


def test_colours_and_the_arrangement_by_neighbours(lab: str, open_page: Open) -> None:
    page = open_map(open_page, lab, scheme="dark")
    page.get_by_label("Colour").select_option("group")
    legend = page.get_by_role("group", name=re.compile("Legend"))
    expect(legend.get_by_role("button")).to_have_count(10)  # nine groups with a colour of their own, and the others
    legend.get_by_role("button").first.click()
    expect(legend.get_by_role("button").first).to_have_attribute("aria-pressed", "true")
    painted = f"new Set({SCATTER}.pixels).size"
    assert page.evaluate(painted) > 2  # ground, the shown group, and the faint others
    first = page.evaluate(f"{SCATTER}.points[0]")
    page.get_by_role("button", name="Arrange by neighbours").click()
    expect(page.get_by_role("button", name="Neighbours", exact=True)).to_have_attribute(
        "aria-pressed", "true", timeout=60_000
    )
    until(page, f"{SCATTER}.points[0] !== {first}")
    page.get_by_role("button", name="Images", exact=True).click()
    check_accessible(page)
