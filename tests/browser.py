"""A headless Chromium for tests of pages, and the checks that an accessibility audit makes.

A machine without Chromium or Playwright skips the tests that ask for them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

AUDIT = """() => {
  const found = [];
  const tell = (element, what) => found.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
  const named = (e) => (e.getAttribute('aria-label') || e.textContent || '').trim();
  for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) tell(e, 'no alt');
  for (const e of document.querySelectorAll('input, select'))
    if (!e.getAttribute('aria-label') && !(e.labels.length && e.labels[0].textContent.trim())) tell(e, 'no label');
  for (const e of document.querySelectorAll('button, summary, dialog, [role=img], [role=group]'))
    if (!named(e)) tell(e, 'no name');
  for (const e of document.querySelectorAll('th')) if (!e.scope) tell(e, 'no scope');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) found.push('twice: ' + id);
  if (document.documentElement.lang !== 'en') found.push('no language');
  const heads = [...document.querySelectorAll('h1')].filter((e) => e.getClientRects().length);
  if (heads.length !== 1) found.push('not one h1');
  let level = 0;
  for (const e of document.querySelectorAll('h1, h2, h3, h4')) {
    if (!e.getClientRects().length) continue;
    if (Number(e.tagName[1]) > level + 1) tell(e, 'skipped heading');
    level = Number(e.tagName[1]);
  }
  return found;
}"""
"""Names of pictures, inputs and buttons, unique ids, and headings in order."""

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {  // any CSS colour, by painting it
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = (e) => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  let count = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.getClientRects().length) continue;
    if (e.closest('script, style, option, noscript')) continue;
    count += 1;
    const style = getComputedStyle(e), below = ground(e);
    const text = over(rgba(e.closest('svg') ? style.fill : style.color), below);
    const [a, b] = [light(text), light(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    const words = walker.currentNode.textContent.trim().slice(0, 60);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${words}`);
  }
  return [count, found];
}"""
"""Texts below the contrast of WCAG 2.2, level AA (success criterion 1.4.3), and the number of texts looked at."""

WIDER = """() => {
  const clips = (e) => e && (getComputedStyle(e).overflowX !== 'visible' || clips(e.parentElement));
  return [...document.querySelectorAll('body *')]
    .filter((e) => e.getClientRects().length && !e.parentElement.closest('svg') && !clips(e.parentElement))
    .filter((e) => { const box = e.getBoundingClientRect(); return box.right > innerWidth + 0.5 || box.left < -0.5; })
    .map((e) => e.outerHTML.slice(0, 120));
}"""
"""Elements that reach beyond the window; what a frame cuts off does not count."""

BROKEN = """(selector) => [...document.querySelectorAll(selector)]
.filter((e) => e.getClientRects().length).flatMap((e) => {
  const found = [], walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (const word of node.data.matchAll(/\\w+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      if (range.getClientRects().length > 1) found.push(word[0]);
    }
  }
  return found;
})"""
"""Words of the elements that a selector finds that go on in a second line."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where Playwright or Chromium is not installed.

    GMD_CHROMIUM names one that is not on the PATH.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra `dev`)")
    path = os.environ.get("GMD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)}); Debian's package is `chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


# Not of the session's scope: as long as it runs, Playwright keeps an event loop in this thread, which Ray may need.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the tests of a file; starting it takes 2 s."""
    with chromium() as running:
        yield running


class OpenPage:
    """A function that opens an empty tab; as a context manager it closes all tabs at the end of the block.

    A tab may ask for the next picture at any moment: the block has to end before the server of the test does.
    """

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.told: list[str] = []
        """Errors in the console, and those that nobody has caught."""

    def __call__(self, window: dict[str, int] = WIDE, *, faults_expected: bool = False, **options: Any) -> Any:
        """Open a tab, with options of Playwright's `new_context`."""
        context = self._browser.new_context(viewport=window, **options)
        self._contexts.append(context)
        page = context.new_page()
        if not faults_expected:
            page.on("console", lambda message: self.told.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: self.told.append(str(error)))
        return page

    def __enter__(self) -> OpenPage:
        return self

    def __exit__(self, *_: object) -> None:
        while self._contexts:
            self._contexts.pop().close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens tabs. An error in the console of one fails the test, unless it is opened with `faults_expected=True`."""
    with OpenPage(browser) as pages:
        yield pages
    assert pages.told == [], pages.told


@contextmanager
def opened(browser: Any, path: Path, *, allowed: tuple[str, ...] = (), **context: Any) -> Iterator[Any]:
    """A tab with a page from the disk; fails on any message of its console, error, or request but for the page itself.

    Args:
        allowed: URLs that the page may ask for beside itself.
        context: arguments of Playwright's `new_page`.
    """
    page = browser.new_page(**context)
    told: list[str] = []
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    expected = (path.as_uri(), *allowed, "data:")
    page.on("request", lambda asked: None if asked.url.startswith(expected) else told.append(f"asks for {asked.url}"))
    page.goto(path.as_uri())
    yield page
    assert told == []
    page.close()


def audit(page: Any, least: int = 20) -> list[str]:
    """List what an audit of names, structure and contrast finds on a page as it is shown.

    Args:
        least: number of texts that the page has at least, so that the audit of an empty page fails.
    """
    count, faint = page.evaluate(CONTRAST)
    assert count >= least, "texts were looked at"
    return [*page.evaluate(AUDIT), *faint]


def until(page: Any, condition: Callable[[], bool]) -> None:
    """Wait for something that a page without `eval` cannot be asked to tell by itself."""
    for _ in range(500):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("it did not happen within 10 s")
