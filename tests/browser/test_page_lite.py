"""docs/examples/browser.ipynb in JupyterLite, in headless Chromium. ``ENCLAVIA_SCREENSHOT`` names a
file that the last look is kept in."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lite
import pytest
import served
from page_app import PageApp, digest_of, facts_of
from test_page import CHROMIUM, playwright

from enclavia.testing import LocalEnclave

NOTEBOOK = served.ROOT / "docs" / "examples" / "browser.ipynb"
PATIENCE = 400.0


def text_of(page: Any) -> str:
    outputs = page.locator(".jp-OutputArea-output").all_inner_texts()
    return "\n".join(outputs)


def test_the_example_runs_in_jupyterlite(tmp_path: Path) -> None:
    pytest.importorskip("jupyterlite_core", reason="pip install --group browser")
    app = PageApp()
    with LocalEnclave(app) as enclave:
        app.enclave = enclave
        site = lite.built(tmp_path, served.own_wheel(), NOTEBOOK, facts_of(enclave))
        with served.serving(site, None) as address, playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1180, "height": 1500})
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(f"{address}/notebooks/index.html?path={NOTEBOOK.name}")
            page.wait_for_selector(".jp-Notebook-cell >> text=file_digest")
            page.click("text=Run")
            page.click("text=Run All Cells")
            until = time.monotonic() + PATIENCE
            while "refused:" not in text_of(page) and time.monotonic() < until:
                assert "Traceback" not in text_of(page), text_of(page)
                time.sleep(1)
            said = text_of(page)
            if "ENCLAVIA_SCREENSHOT" in os.environ:
                page.screenshot(path=os.environ["ENCLAVIA_SCREENSHOT"], full_page=True)
            browser.close()
    assert "signed, and chained to the pinned root" in said
    assert f"sha256 {digest_of(50_000_000)}" in said
    assert "refused: PCR0: expected abab" in said
    assert app.requests == ["/bytes"]
