"""The pages in a real Chromium: they draw, make no request, and everybody can read them.

One page of each kind: a language model's report, a classifier's, and a comparison of several runs.
The scripts in probes.js ask the browser for what it computes.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kdscale.report import write_comparison, write_report
from tests.unit.report.sample import class_results, sample_results, sample_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROBES = Path(__file__).with_name("probes.js").read_text(encoding="utf-8")
PAGES = ("language-model", "classifier", "comparison")
DRAWINGS = {"language-model": 11, "classifier": 11, "comparison": 4}
SECTIONS = {
    "language-model": (
        *("Quality", "Cost", "Cache", "Training", "Curriculum", "Disagreements", "Speed"),
        *("Calibration", "Samples", "Configuration and provenance"),
    ),
    "comparison": (
        *("Figures", "Quality", "Size and quality", "Training", "Configuration and provenance"),
    ),
}
SECTIONS["classifier"] = SECTIONS["language-model"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver (apt-get install)"
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the files by kind."""
    folder = tmp_path_factory.mktemp("runs")
    write_report(sample_run(folder / "language-model"))
    write_report(sample_run(folder / "classifier", class_results()))
    stores = []
    for seed, name in enumerate(("first", "first", "a-run-with-" + "quite-" * 8 + "a-long-name")):
        results = sample_results(run=name)
        results["seed"] = seed
        stores.append(sample_run(folder / str(seed), results))
    # Another experiment: other bytes, other settings.
    other = sample_results(run=name)
    assert other["cache"] is not None
    other["cache"]["bytes_per_token"], other["gap_recovered"] = 24.0, {"validation": 0.41}
    store = sample_run(folder / "2", other)
    text = store.get("config.resolved.yaml").replace(b"sequences: 1600", b"sequences: 3200")
    store.put("config.resolved.yaml", text)
    write_comparison(stores, folder / "comparison.html")
    reports = {name: folder / name / "report" / "index.html" for name in PAGES[:2]}
    return {**reports, "comparison": folder / "comparison.html"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Start one Chromium for all tests; its driver ends it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    """Return the kind of page."""
    return str(request.param)


@pytest.fixture
def browser(
    driver: webdriver.Chrome, pages: dict[str, Path], name: str
) -> Iterator[webdriver.Chrome]:
    """Open that page, light, at the width of a laptop; the logs hold that page only."""
    _emulate(driver, "screen", "light")
    _resize(driver, 1280)
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(pages[name].as_uri())
    yield driver
    assert [e for e in driver.get_log("browser") if e["level"] in ("WARNING", "SEVERE")] == []


def _emulate(browser: webdriver.Chrome, media: str, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def _resize(browser: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _spoken(browser: webdriver.Chrome) -> list[dict[str, Any]]:
    """Return what a screen reader is given: role, name, description and level, in order."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = []
    for node in nodes:
        if not node.get("ignored"):
            properties = {p["name"]: p["value"].get("value") for p in node.get("properties", [])}
            texts = {key: node.get(key, {}).get("value", "") for key in ("role", "name")}
            described = node.get("description", {}).get("value", "")
            found.append(texts | {"description": described, "level": properties.get("level")})
    return found


def _probe(browser: webdriver.Chrome, function: str, *arguments: Any) -> Any:
    """Call a function of probes.js."""
    return browser.execute_script(f"{PROBES}\nreturn {function}(...arguments);", *arguments)


def test_no_request_leaves_the_page(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str
) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = {request["request"]["url"] for request in requests}
    # Chromium asks for the icon, which is empty and stands in the page.
    assert urls - {"data:,"} == {pages[name].as_uri()}


def test_every_chart_draws_and_has_a_text_alternative(browser: webdriver.Chrome, name: str) -> None:
    drawings = browser.find_elements(By.TAG_NAME, "svg")
    assert len(drawings) == DRAWINGS[name]
    for drawing in drawings:
        identifier = drawing.get_attribute("id")
        assert drawing.size["width"] > 300, identifier
        assert drawing.size["height"] > 80, identifier
        assert drawing.aria_role in ("img", "image"), identifier
        assert drawing.accessible_name, identifier
    described = _probe(browser, "descriptions")
    assert [each["id"] for each in described if len(each["text"]) < 15] == []
    for figure in browser.find_elements(By.TAG_NAME, "figure"):
        assert figure.accessible_name


def test_headings_landmarks_and_tables_are_in_order(browser: webdriver.Chrome) -> None:
    found = _probe(browser, "structure")
    assert found["lang"] == "en"
    assert found["title"]
    assert found["landmarks"] == ["header", "nav", "main", "footer"]
    assert found["levels"].count(1) == 1
    assert found["levels"][0] == 1
    steps = zip(found["levels"], found["levels"][1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert found["repeatedIds"] == []
    assert found["danglingReferences"] == []
    assert found["headersWithoutScope"] == []
    assert found["tablesWithoutCaption"] == []


def test_a_screen_reader_is_told_headings_tables_and_charts(
    browser: webdriver.Chrome, name: str
) -> None:
    browser.execute_script(
        "for (const each of document.querySelectorAll('details')) each.open = true"
    )
    spoken = _spoken(browser)
    headings = [(each["level"], each["name"]) for each in spoken if each["role"] == "heading"]
    assert headings[0][0] == 1
    assert tuple(text for level, text in headings if level == 2) == SECTIONS[name]
    regions = [each["name"] for each in spoken if each["role"] == "region"]
    assert tuple(regions) == SECTIONS[name]
    tables = [each["name"] for each in spoken if each["role"] == "table"]
    assert len(tables) == len(browser.find_elements(By.TAG_NAME, "table"))
    assert all(tables)
    charts = [each for each in spoken if each["role"] in ("img", "image")]
    assert len(charts) == DRAWINGS[name]
    assert all(each["name"] and len(each["description"]) >= 15 for each in charts)
    headers = [each["name"] for each in spoken if each["role"] in ("columnheader", "rowheader")]
    assert len(headers) > 20


@pytest.mark.parametrize("width", [360, 1280])
def test_wide_tables_scroll_inside_themselves(browser: webdriver.Chrome, width: int) -> None:
    _resize(browser, width)
    assert _probe(browser, "tablesOutside") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out(browser: webdriver.Chrome, scheme: str) -> None:
    _emulate(browser, "screen", scheme)
    browser.execute_script(
        "for (const each of document.querySelectorAll('details')) each.open = true"
    )
    texts = _probe(browser, "contrasts")
    assert len(texts) > 100
    assert [each for each in texts if each["ratio"] < 4.5] == []
    marks = _probe(browser, "markContrasts")
    assert marks
    assert [each for each in marks if each["ratio"] < 3.0] == []
    luminance = _probe(browser, "pageLuminance")
    assert luminance > 0.9 if scheme == "light" else luminance < 0.05


@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_the_page_does_not_scroll_sideways(browser: webdriver.Chrome, width: int) -> None:
    _resize(browser, width)
    root = "return document.documentElement."
    assert browser.execute_script(f"{root}scrollWidth") <= width
    assert browser.execute_script(f"{root}clientWidth") > width - 30
    assert _probe(browser, "chartTextOutside") == []


def test_all_that_can_be_operated_is_reached_and_shown_by_keyboard(
    browser: webdriver.Chrome,
) -> None:
    _resize(browser, 360)
    expected = _probe(browser, "focusable")
    assert expected > 5
    _probe(browser, "recordFocus")
    ActionChains(browser).send_keys(Keys.TAB * expected).perform()
    seen = browser.execute_script("return window.focusRecord")
    assert len(seen) == expected
    assert [each for each in seen if not each["outlined"] or not each["name"]] == []
    assert len({each["place"] for each in seen}) == expected
    # What scrolls can be scrolled without a mouse.
    assert _probe(browser, "scrollersOutOfReach") == []


def test_data_unfold_by_keyboard(browser: webdriver.Chrome) -> None:
    summary = browser.find_element(By.CSS_SELECTOR, "details.data summary")
    table = browser.find_element(By.CSS_SELECTOR, "details.data table")
    assert not table.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert table.is_displayed()


def test_links_lead_to_sections(browser: webdriver.Chrome) -> None:
    for link in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        link.click()
        target = browser.execute_script("return document.querySelector(':target h2').textContent")
        assert target == link.text


def test_paper_shows_all_and_cuts_nothing(browser: webdriver.Chrome, name: str) -> None:
    _emulate(browser, "print", "dark")
    _resize(browser, 700)  # A4 at 96 pixels an inch, without margins
    assert _probe(browser, "pageLuminance") == 1
    assert _probe(browser, "cutOff") == []
    # What is folded on a screen is open here, but for data that a chart beside it shows.
    assert _probe(browser, "shown", "details pre") == [True] * (name != "comparison")
    assert not any(_probe(browser, "shown", "nav, details.data"))
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF-")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 16
