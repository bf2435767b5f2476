"""A real browser for the tests of pages: headless Chromium, driven through Playwright.

A conftest.py imports the fixtures. A machine without Chromium or Playwright skips the tests that ask for them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    OpenPage = Callable[..., Page]
    """Called with the width and height of the window in CSS pixels; both have defaults."""

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, PHONE = (1280, 900), (390, 844)
"""Windows of a desktop and of a phone: (width, height) in CSS pixels."""


def chromium() -> str | None:
    """The path of a Chromium: that of the variable GMD_CHROMIUM, or the first of `PROGRAMS` that is installed."""
    named = os.environ.get("GMD_CHROMIUM")
    return named or next((found for name in PROGRAMS if (found := shutil.which(name))), None)


# Not of the session's scope: as long as it runs, Playwright keeps an event loop in this thread, which Ray may need.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One headless Chromium for the tests of a file; starting it takes 2 s."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    program = chromium()
    if program is None:
        pytest.skip(f"no Chromium on this machine ({', '.join(PROGRAMS)}); set GMD_CHROMIUM to one")
    with api.sync_playwright() as playwright:
        # No sandbox: containers rarely allow one. The pages are our own.
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """A function that opens an empty page.

    An error in its console fails the test, unless it is opened with `faults_expected`.
    """
    faults: list[str] = []
    contexts = []

    def open_one(
        width: int = WIDE[0], height: int = WIDE[1], *, faults_expected: bool = False, **options: object
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        if faults_expected:
            return page
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for something that a page without `eval` cannot be asked to tell by itself."""
    for _ in range(500):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("it did not happen within 10 s")


def too_wide(page: Page) -> list[str]:
    """The elements that reach beyond the window's right edge, and those that make the page scroll sideways."""
    found: list[str] = page.evaluate(
        """() => {
            const edge = document.documentElement.clientWidth;
            const clipped = (e) => {
                for (let p = e.parentElement; p; p = p.parentElement)
                    if (getComputedStyle(p).overflowX !== 'visible') return true;
                return false;
            };
            const wide = [...document.body.querySelectorAll('*')].filter(
                (e) => e.getClientRects().length && e.getBoundingClientRect().right > edge + 0.5 && !clipped(e));
            const names = wide.map((e) => `${e.tagName.toLowerCase()}.${e.className}`);
            return document.documentElement.scrollWidth > edge ? [...names, 'page scrolls sideways'] : names;
        }"""
    )
    return found
