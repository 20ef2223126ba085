"""The pages in headless Chromium: no message, filters, sorting, slider, keyboard, accessibility."""

import os
import shutil
import time

import pytest
from report_pages import HOSTILE, write_pages

sync_api = pytest.importorskip("playwright.sync_api", reason="needs carvana_tf[browser]")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs carvana_tf[browser]"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium, or CHROMIUM=its path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, folder):
    """Opens a page of the folder; at the end nothing may have been logged or asked elsewhere."""
    messages, contexts = [], []

    def open_page(name="report.html", width=1280, scheme="light"):
        size = {"width": width, "height": 844}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("requestfailed", lambda request: messages.append(f"failed {request.url}"))
        page.on("request", lambda r: r.url.startswith("file:") or messages.append(r.url))
        page.goto((folder / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


def rows(page, name="photos"):
    cells = f'[data-table="{name}"] tbody tr'
    return page.eval_on_selector_all(
        cells, "trs => trs.map(t => [...t.cells].map(c => c.innerText))"
    )


def cards(page):
    return page.eval_on_selector_all("[data-gallery] span", "all => all.map(s => s.innerText)")


@pytest.mark.parametrize("name", ["report.html", "comparison.html", "labels/report.html"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_width_and_accessibility(visit, name, width, scheme):
    page = visit(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for _ in range(2):  # the page, then the viewer
        found = axe.Axe().run(page).response["violations"]
        serious = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert serious == []
        page.click("[data-gallery] button >> nth=0")
        assert page.evaluate("document.querySelector('dialog').scrollWidth") <= width
        page.keyboard.press("Escape")
    other = visit(name, width, "light" if scheme == "dark" else "dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) != other.evaluate(colour)


def test_filters_and_sorting(visit):
    page = visit()
    dice = [float(row[4]) for row in rows(page)]
    assert dice == sorted(dice) and len(dice) == 25
    page.click('[data-table="photos"] th[data-key="dice"] button')
    head = page.locator('[data-table="photos"] th[data-key="dice"]')
    assert head.get_attribute("aria-sort") == "descending"
    assert page.input_value("[name=order]") == "dice down"
    best = [float(row[4]) for row in rows(page)]
    assert best == sorted(best, reverse=True) and best[0] >= dice[-1]
    assert [row[0] for row in rows(page)][:24] == [card.split()[0] for card in cards(page)]
    page.select_option("[name=fold]", "1")
    assert {row[3] for row in rows(page)} == {"1"} and len(rows(page)) == 10
    assert page.inner_text("[data-count]") == "10 of 30 photos"
    page.select_option("[name=view]", "0")
    assert {(row[2], row[3]) for row in rows(page)} == {("0", "1")}
    page.click("[data-filters] [type=reset]")
    page.wait_for_timeout(50)
    assert page.inner_text("[data-count]") == "30 of 30 photos"
    page.fill("[name=to]", str(dice[4]))
    assert {float(row[4]) for row in rows(page)} == {*dice[:5]} and len(cards(page)) >= 5
    page.fill("[name=to]", "")
    page.fill("[name=search]", "onerror")
    assert [row[1] for row in rows(page)] == [HOSTILE] * 2
    page.fill("[name=search]", "no such photo")
    assert rows(page) == [] and cards(page) == []
    page.fill("[name=search]", "")
    page.select_option("[name=order]", "random")
    assert [row[0] for row in rows(page)] != sorted(row[0] for row in rows(page))
    assert len(cards(page)) == 24
    page.click("[data-more]")
    assert len(cards(page)) == 30
    page.click('[data-pager="photos"] button >> nth=1')
    assert len(rows(page)) == 5


def test_viewer_by_keyboard(visit):
    page = visit()
    page.focus("[data-gallery] button")
    page.keyboard.press("Enter")
    title = page.inner_text("#viewer-title")
    assert "1 of 30" in title
    wait_for_picture(page)
    page.focus("[name=slide]")
    before = page.evaluate("document.querySelector('[data-part=mask]').style.clipPath")
    page.keyboard.press("Home")
    shut = page.evaluate("document.querySelector('[data-part=mask]').style.clipPath")
    page.keyboard.press("End")
    full = page.evaluate("document.querySelector('[data-part=mask]').style.clipPath")
    assert len({before, shut, full}) == 3
    page.focus("[name=layer][value='truth.png']")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("[data-part=mask]", "src").endswith("-prediction.png")
    page.focus(".stage")
    for key in ("+", "+", "ArrowRight"):
        page.keyboard.press(key)
    assert "scale(2.25)" in page.evaluate("document.querySelector('.layers').style.transform")
    page.keyboard.press("0")
    assert "scale(1)" in page.evaluate("document.querySelector('.layers').style.transform")
    page.click("[data-do=worst]")
    assert "scale(1)" not in page.evaluate("document.querySelector('.layers').style.transform")
    page.click("[data-do=next]")
    assert "2 of 30" in page.inner_text("#viewer-title")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#viewer-title") == title
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog")


def wait_for_picture(page):
    for _ in range(100):
        if page.evaluate("document.querySelector('[data-part=photo]').naturalWidth") == 60:
            return
        time.sleep(0.05)
    pytest.fail("the photo was not loaded")
