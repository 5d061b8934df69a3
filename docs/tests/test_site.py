"""Every page of the built site in a browser: no error on the console, nothing missing, no link into the void, and it fits a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parent.parent / "_build" / "html"
PAGES = sorted(path.relative_to(SITE) for path in SITE.rglob("*.html") if "_static" not in path.parts)
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no browser: set CHROMIUM to one, or install chromium"),
    pytest.mark.skipif(not PAGES, reason="the site is not built: make docs"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def anchors() -> dict[Path, set[str]]:
    """What a link into a page may name, filled in as pages are opened."""
    return {}


def ids(browser: Any, page: Path, known: dict[Path, set[str]]) -> set[str]:
    if page not in known:
        tab = browser.new_page(java_script_enabled=False)
        tab.goto(page.as_uri())
        known[page] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        tab.close()
    return known[page]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page(page: Path, scheme: str, browser: Any, anchors: dict[Path, set[str]]) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme=scheme)
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(f"not there: {request.url}"))
    tab.on("request", lambda request: wrong.append(f"asks the network: {request.url}") if remote(request.url) else None)
    tab.goto((SITE / page).as_uri(), wait_until="networkidle")
    for size in (PHONE, DESKTOP):
        tab.set_viewport_size(size)
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"], f"{width} px wide on a screen of {size['width']}"
    # An image below the fold is loaded when it is looked at.
    tab.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    tab.wait_for_load_state("networkidle")
    wrong += tab.evaluate(
        "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => 'no image: ' + i.src)"
    )
    for link in tab.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)"):
        target = urlsplit(link)
        if target.scheme == "file":
            file = Path(unquote(target.path))
            if not file.is_file():
                wrong.append(f"a link to nowhere: {link}")
            elif (
                target.fragment
                and file.suffix == ".html"
                and unquote(target.fragment) not in ids(browser, file, anchors)
            ):
                wrong.append(f"a link to no place of the page: {link}")
    context.close()
    assert not wrong, "\n".join(wrong)


def remote(url: str) -> bool:
    return url.startswith(("http:", "https:"))
