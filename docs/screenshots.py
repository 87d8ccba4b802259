"""Write docs/report-light.png and docs/report-dark.png: parts of the report of a finished run.

    make quickstart && .venv/bin/python docs/screenshots.py [RUN]

Needs Debian's chromium and chromium-driver, and selenium (extra `dev`).
"""

import base64
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from kdscale.report.html import render_html
from kdscale.report.load import load_run
from kdscale.store import open_store

DOCS = Path(__file__).parent
WIDTH = 1040
# By scheme: from the top of one element to the bottom of another.
PARTS = {
    "light": ("header", "#quality > .scroll"),
    "dark": ("#training", "#training .pair"),
}
MARGIN = 16


def main() -> None:
    """Write a picture for each scheme."""
    run = sys.argv[1] if len(sys.argv) > 1 else str(DOCS.parent / "runs" / "quickstart")
    browser = _browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "index.html"
            page.write_text(render_html(load_run(open_store(run))), encoding="utf-8")
            browser.get(page.as_uri())
            for scheme, (first, last) in PARTS.items():
                file = DOCS / f"report-{scheme}.png"
                file.write_bytes(_picture(browser, scheme, first, last))
                print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    finally:
        browser.quit()


def _browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return browser


def _picture(browser: webdriver.Chrome, scheme: str, first: str, last: str) -> bytes:
    """PNG of the page at its whole width."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    edge = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]]"
    top = browser.execute_script(edge, first, "top") - MARGIN
    bottom = browser.execute_script(edge, last, "bottom") + MARGIN
    clip = {"x": 0, "y": max(0, top), "width": WIDTH, "height": bottom - max(0, top), "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


if __name__ == "__main__":
    main()
