"""The site and the executed notebook in a real browser: ``make screenshots``.

Every page is opened in Chromium at the widths of a screen, a tablet and a phone. It fails where the
browser's console has an error, where a picture is missing, and where text or a picture lies beyond
the right edge of the window and cannot be scrolled to inside of its own box. Pictures of the pages
that newcomers see first are left in ``build/screenshots``.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from selenium import webdriver

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
SITE = BUILD / "site"
PICTURES = BUILD / "screenshots"
NOTEBOOK = ROOT / "docs" / "examples" / "notebook.ipynb"
NOTEBOOK_PAGE = "screenshots/notebook.html"
PICTURED = {
    "site/docs/index.html": "start",
    "site/docs/guide.html": "guide",
    NOTEBOOK_PAGE: "notebook",
}
_SECONDS = 120


class Window(NamedTuple):
    width: int
    height: int


WINDOWS = (Window(1280, 900), Window(768, 1024), Window(390, 844))

# Returns a sentence for each text and picture that is beyond the right edge. What scrolls in a box
# of its own can be reached, and what a box cuts off cannot; what lies wholly outside in a fixed
# panel is a menu that is shut.
_BEYOND = """
const edge = document.documentElement.clientWidth + 1;
function excused(element, box) {
  for (let each = element; each; each = each.parentElement) {
    const style = getComputedStyle(each);
    if (style.visibility === "hidden" || style.display === "none") return true;
    if (style.position === "fixed" && each.getBoundingClientRect().left >= edge - 1) return true;
    const bounds = each.getBoundingClientRect();
    const isPage = each === document.body || each === document.documentElement;
    if (isPage || bounds.right > edge) continue;
    if (/auto|scroll/.test(style.overflowX)) return true;
    if (/hidden|clip/.test(style.overflowX)) return bounds.width <= 1;  // cut off, but for labels
  }
  return false;
}
const found = [];
const range = document.createRange();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  if (!node.data.trim() || /^(SCRIPT|STYLE|TITLE)$/i.test(node.parentElement.tagName)) continue;
  range.selectNodeContents(node);
  for (const box of range.getClientRects())
    if (box.right > edge && box.width && !excused(node.parentElement, box)) {
      found.push(`text ends at ${Math.round(box.right)} px: ${node.data.trim().slice(0, 60)}`);
      break;
    }
}
for (const image of document.images) {
  const box = image.getBoundingClientRect();
  if (image.complete && !image.naturalWidth) found.push(`no picture: ${image.src}`);
  else if (box.right > edge && !excused(image, box))
    found.push(`a picture ends at ${Math.round(box.right)} px: ${image.src}`);
}
const wide = document.documentElement.scrollWidth;
if (wide > edge) found.push(`the page scrolls sideways, to ${wide} px`);
return found;
"""


# What is wrong with it has to be found, or nothing that was found means anything.
_WRONG = (
    """<!doctype html><title>wrong</title>
<p style="white-space: nowrap">"""
    + "too wide " * 400
    + """</p>
<div style="overflow-x: auto"><p style="white-space: nowrap">"""
    + "scrolls " * 400
    + """</p></div>
<div style="overflow: hidden"><p style="white-space: nowrap">"""
    + "cut off " * 400
    + """</p></div>
<img src="absent.png"><img style="width: 3000px; height: 1px" src="data:image/gif;base64,
R0lGODlhAQABAAAAACwAAAAAAQABAAA="><script>console.error("said")</script>
"""
)
_FOUND = (
    "the console: ",
    "too wide too wide",
    "cut off cut off",
    "no picture: ",
    "a picture ends at ",
    "the page scrolls",
)


# nbconvert cuts long lines of code off where the window is narrow. JupyterLab scrolls them.
_WRAPPED = (
    "<style>.jp-InputArea-editor pre { white-space: pre-wrap; overflow-wrap: anywhere }</style>"
)


def executed_notebook() -> str:
    """As HTML. Scripts of other hosts, for formulas that it does not have, are left out."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run = ExecutePreprocessor(timeout=_SECONDS, kernel_name="python3")
        run.preprocess(notebook, {"metadata": {"path": folder}})
    text, _ = HTMLExporter().from_notebook_node(notebook)
    text = re.sub(r'<script\s[^>]*src="https?://[^>]*>\s*</script>', "", text)
    return text.replace("</head>", f"{_WRAPPED}</head>", 1)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # which a browser asks for, and the site does not have
            self.send_response(204)
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        sys.exit("expected chromium and chromedriver, got none: .ci/system-packages screenshots")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to have one as root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.set_page_load_timeout(_SECONDS)
    try:
        yield made
    finally:
        made.quit()


def resize(driver: webdriver.Chrome, window: Window) -> None:
    """The page's own width: a window of Chromium's is never as narrow as a phone."""
    metrics: dict[str, Any] = {**window._asdict(), "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def problems_of(driver: webdriver.Chrome, address: str) -> list[str]:
    driver.get(address)
    driver.execute_async_script("document.fonts.ready.then(arguments[0])")
    said = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    beyond: list[str] = driver.execute_script(_BEYOND)
    return [f"the console: {each}" for each in said] + beyond


def pages() -> list[str]:
    """The notebook and those of the site, without the one that leads on to its start page."""
    found = [path.relative_to(BUILD).as_posix() for path in sorted(SITE.rglob("*.html"))]
    return [NOTEBOOK_PAGE, *(page for page in found if page != "site/index.html")]


def main() -> int:
    if not SITE.is_dir():
        sys.exit("expected the site in build/site, got none: make site")
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    (BUILD / NOTEBOOK_PAGE).write_text(executed_notebook(), encoding="utf-8")
    (PICTURES / "wrong.html").write_text(_WRONG, encoding="utf-8")
    count = 0
    with served(BUILD) as base, browser() as driver:
        found = problems_of(driver, f"{base}screenshots/wrong.html")
        for kind in _FOUND:
            if not any(kind in each for each in found):
                sys.exit(f"expected a page that is wrong to show {kind!r}, got {found}")
        if any("scrolls scrolls" in each for each in found):
            sys.exit(f"expected a box that scrolls to be let pass, got {found}")
        for window in WINDOWS:
            resize(driver, window)
            for page in pages():
                for problem in problems_of(driver, base + page):
                    count += 1
                    print(f"{page} at {window.width} px: {problem}")
                if page in PICTURED:
                    name = PICTURED[page]
                    driver.save_screenshot(os.fspath(PICTURES / f"{name}-{window.width}.png"))
    print(f"{len(pages())} pages at {len(WINDOWS)} widths, {count} problems; {PICTURES}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
