"""The book in a real browser, from disk, with every host name refused: formulas, colours, widths, requests."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from book_fixture import BUILT, small_book
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver")
Service = pytest.importorskip("selenium.webdriver.chrome.service").Service
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
pytest.importorskip("jupyter_book")

SMALL = ["notebooks/stain", "book/intro", "book/datasets", "book/notation", "book/reproduce", "book/glossary",
         "book/status", "book/bibliography"]  # fmt: skip
PAGES = (
    sorted(
        path.relative_to(BUILT).as_posix()
        for part in ("book", "notebooks")
        for path in Path(BUILT, part).glob("*.html")
    )
    if BUILT
    else [f"{page}.html" for page in SMALL]
)


def html() -> Path:
    """The folder of the pages under test."""
    return Path(BUILT).resolve() if BUILT else small_book().html


# WCAG contrast of every text in the article with the nearest opaque background behind it: the worst five, and how many
CONTRAST = """
const parse = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return {rgb: [r, g, b], a}; };
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = rgb => { const [r, g, b] = rgb.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.a > .9) return c.rgb;
  }
  return [255, 255, 255];
};
const found = [];
const walk = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
  if (!text || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
  if (e.closest('mjx-assistive-mml, .headerlink, script, style, button, .visually-hidden')) continue;
  const a = light(parse(getComputedStyle(e).color).rgb), b = light(behind(e));
  found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + '.' + e.className, text.slice(0, 40)]);
}
return found.sort((x, y) => x[0] - y[0]).slice(0, 5).concat([[found.length, 'texts', '']]);
"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver_path = shutil.which("chromedriver")
    if not chromium or not driver_path:
        pytest.skip("no Chromium with chromedriver here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new no-sandbox disable-dev-shm-usage disable-gpu disable-background-networking"
    for argument in [
        *(f"--{flag}" for flag in flags.split()),
        "--window-size=1280,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    driver.set_page_load_timeout(60)
    yield driver
    with contextlib.suppress(Exception):
        driver.quit()


def open_page(driver, page: str, *, mode: str = "light", width: int = 1280):
    """Open a page in a colour mode and width, when its formulas have been set."""
    mobile = width < 600
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": mode}]}
    )
    for log in ("performance", "browser"):
        driver.get_log(log)
    driver.get((html() / page).as_uri())
    WebDriverWait(driver, 30).until(
        lambda d: d.execute_script(
            "return document.readyState === 'complete'"
            " && (!document.querySelector('.math') || !!document.querySelector('mjx-container'))"
        )
    )
    driver.execute_async_script("document.fonts.ready.then(arguments[0])")
    assert driver.execute_script("return document.documentElement.dataset.theme") == mode


def screenshot(driver, name: str) -> np.ndarray:
    """Pixels of the screen; kept in the folder that WBCREPRO_SCREENSHOTS names, for whoever wants to look."""
    png = driver.get_screenshot_as_png()
    if folder := os.environ.get("WBCREPRO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(png)
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=float) / 255


@pytest.mark.parametrize("page", PAGES)
def test_page_asks_no_host_and_reports_no_error(browser, page):
    open_page(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    failed = [m["params"]["errorText"] for m in messages if m["method"] == "Network.loadingFailed"]
    assert len(asked) > 5 and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not failed
    wrong = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not [m for m in wrong if "MathJax" in m or "ERR_" in m or "Uncaught" in m], wrong


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_set_with_the_vendored_fonts(browser, page):
    open_page(browser, page)
    sources, set_, spoken, errors = browser.execute_script(
        "return ['.math', 'mjx-container', 'mjx-assistive-mml math', 'mjx-merror, [data-mjx-error]']"
        ".map(s => document.querySelectorAll(s).length)"
    )
    assert set_ >= sources and errors == 0
    assert spoken == set_, "screen readers get no formula"
    if page == "book/notation.html":
        assert sources > 2
        height = browser.execute_script("return document.querySelector('mjx-container').getBoundingClientRect().height")
        loaded = browser.execute_script(
            "return [...document.fonts].filter(f => f.family.includes('MJXTEX') && f.status === 'loaded').length"
        )
        assert height > 8 and loaded > 0, "no font of MathJax was loaded"


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_text_is_legible_in_both_modes(browser, page, mode):
    open_page(browser, page, mode=mode)
    *worst, (count, _, _) = browser.execute_script(CONTRAST)
    assert count > 10
    assert worst[0][0] >= 4.5, f"contrast below WCAG AA: {worst}"
    mean = screenshot(browser, f"{Path(page).stem}-{mode}.png").mean()
    assert mean > 0.75 if mode == "light" else mean < 0.35


@pytest.mark.parametrize("page", PAGES)
def test_page_fits_a_telephone(browser, page):
    open_page(browser, page, width=390)
    screenshot(browser, f"{Path(page).stem}-phone.png")
    content, screen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert screen == 390 and content <= screen, f"the page is {content} px wide on a screen of {screen}"
    overflowing = browser.execute_script(
        "return [...document.querySelectorAll('article p, article li, article h1, article h2, article h3, article dd')]"
        ".filter(e => !e.closest('.wbc-table') && e.getBoundingClientRect().right > window.innerWidth + 1)"
        ".map(e => e.textContent.slice(0, 60))"
    )
    assert not overflowing, overflowing


if not BUILT:  # not a skip: this looks for what only the small book of the tests holds

    def test_wide_table_scrolls_inside_its_box(browser):
        open_page(browser, "notebooks/stain.html", width=390)
        inner, outer, right = browser.execute_script(
            "const t = document.querySelector('.cell_output .wbc-table');"
            "return [t.scrollWidth, t.clientWidth, t.getBoundingClientRect().right]"
        )
        assert inner > outer and right <= 390


def test_start_page_leads_into_the_book(browser):
    browser.get((html() / "index.html").as_uri())
    read = "return document.querySelector('article')?.innerText ?? ''"
    WebDriverWait(browser, 20).until(lambda d: "Not for diagnosis" in d.execute_script(read))
    assert browser.current_url.endswith("book/intro.html")


if not BUILT:  # not a skip: this looks for what only the small book of the tests holds

    def test_download_and_colab_links_point_where_they_should(browser):
        import wbcrepro

        open_page(browser, "notebooks/stain.html")
        links = browser.execute_script("return [...document.querySelectorAll('a')].map(a => a.href)")
        colab = wbcrepro.REPOSITORY.replace("https://github.com/", "https://colab.research.google.com/github/")
        assert f"{colab}/blob/main/notebooks/stain.ipynb" in links
        csv = next(link for link in links if link.endswith("table.csv"))
        assert csv.startswith("file:") and Path(csv.removeprefix("file://")).is_file()
