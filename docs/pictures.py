"""Write the pictures of the report in docs/: light and dark, on telephone, laptop and wide screen.

    make quickstart && .venv/bin/python docs/pictures.py [RUN]

Needs Debian's chromium and chromium-driver, and selenium (extra `dev`).
"""

import base64
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from kdscale.report.load import load_report_data
from kdscale.report.pages import render_report
from kdscale.store import open_store

DOCS = Path(__file__).parent
# By name: scheme, width, and the elements from whose top to whose bottom the picture goes.
PICTURES = {
    "report-light": ("light", 1280, "header", "#quality > .scroll"),
    "report-dark": ("dark", 1280, "#training", "#training .pair"),
    "report-light-1920": ("light", 1920, "#cost", "#cache .facts"),
    "report-dark-1920": ("dark", 1920, "#disagreements", "#calibration .pair"),
    "report-light-360": ("light", 360, "header", "#quality > figure"),
    "report-dark-360": ("dark", 360, "#training", "#training > figure"),
}
MARGIN = 16


def main() -> None:
    """Render the run's page and take each picture."""
    run = sys.argv[1] if len(sys.argv) > 1 else str(DOCS.parent / "runs" / "quickstart")
    browser = _browser()
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "index.html"
            page.write_text(render_report(load_report_data(open_store(run))), encoding="utf-8")
            browser.get(page.as_uri())
            for name, part in PICTURES.items():
                file = DOCS / f"{name}.png"
                file.write_bytes(_picture(browser, *part))
                print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    finally:
        browser.quit()


def _browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _picture(browser: webdriver.Chrome, scheme: str, width: int, first: str, last: str) -> bytes:
    """Return a PNG of the page at its whole width."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    edge = "return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]]"
    top = max(0, browser.execute_script(edge, first, "top") - MARGIN)
    bottom = browser.execute_script(edge, last, "bottom") + MARGIN
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


if __name__ == "__main__":
    main()
