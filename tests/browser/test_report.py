"""The report in a real Chromium: it draws, is quiet, asks for nothing, follows the scheme."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from kdscale.report import write_report
from tests.unit.report.sample import sample_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver (apt-get install)"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the sample run."""
    folder = tmp_path_factory.mktemp("run")
    write_report(sample_run(folder))
    return folder / "report" / "index.html"


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A fresh Chromium on the report; its driver ends it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def _scheme(browser: webdriver.Chrome, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def _luminance(browser: webdriver.Chrome, selector: str, field: str) -> float:
    """Relative luminance (WCAG 2) of a computed colour."""
    element = browser.find_element(By.CSS_SELECTOR, selector)
    text = element.value_of_css_property(field)
    channels = [float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_draws_and_is_quiet(browser: webdriver.Chrome) -> None:
    assert browser.find_element(By.TAG_NAME, "h1").text == "quickstart"
    lead = browser.find_element(By.CLASS_NAME, "lead").text
    assert "recovers 30% of the loss gap" in lead
    drawings = browser.find_elements(By.TAG_NAME, "svg")
    assert len(drawings) == 9
    for drawing in drawings:
        assert drawing.size["width"] > 300, drawing.get_attribute("id")
        assert drawing.size["height"] > 100, drawing.get_attribute("id")
        assert drawing.accessible_name, drawing.get_attribute("id")
    assert browser.get_log("browser") == []


def test_no_request_leaves_the_page(browser: webdriver.Chrome, page: Path) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # Chromium's own start page, open before ours, has its requests in the same log.
    ours = [r for r in requests if not r["documentURL"].startswith("chrome:")]
    urls = [request["request"]["url"] for request in ours]
    assert page.as_uri() in urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_text_and_lines_are_legible_in_both_schemes(browser: webdriver.Chrome) -> None:
    backgrounds = {}
    for scheme in ("light", "dark"):
        _scheme(browser, scheme)
        backgrounds[scheme] = _luminance(browser, "body", "background-color")
        card = _luminance(browser, "figure", "background-color")
        for selector, field, least in (
            ("figcaption", "color", 4.5),
            ("figure svg .tick", "fill", 4.5),
            ("svg .mark.student", "fill", 3.0),
            ("svg .mark.control", "fill", 3.0),
            ("svg .mark.teacher", "fill", 3.0),
        ):
            high, low = sorted((_luminance(browser, selector, field), card), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (scheme, selector)
    assert backgrounds["light"] > 0.9
    assert backgrounds["dark"] < 0.05


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_does_not_scroll_sideways(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    root = "return document.documentElement."
    assert browser.execute_script(f"{root}scrollWidth") <= width
    assert browser.execute_script(f"{root}clientWidth") > width - 30


def test_chart_text_stays_within_its_drawing(browser: webdriver.Chrome) -> None:
    outside = browser.execute_script(
        """
        const found = [];
        for (const svg of document.querySelectorAll("svg")) {
          const box = svg.getBoundingClientRect();
          for (const text of svg.querySelectorAll("text")) {
            const t = text.getBoundingClientRect();
            if (t.left < box.left - 1 || t.right > box.right + 1
                || t.top < box.top - 1 || t.bottom > box.bottom + 1)
              found.push(svg.id + ": " + text.textContent);
          }
        }
        return found;
        """
    )
    assert outside == []
