"""A headless Chromium for tests of pages, and the checks that an accessibility audit makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

AUDIT = """() => {
  const found = [];
  const tell = (element, what) => found.push(`${what}: ${element.outerHTML.slice(0, 160)}`);
  const named = (e) => (e.getAttribute('aria-label') || e.textContent || '').trim();
  for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) tell(e, 'no alt');
  for (const e of document.querySelectorAll('input, select'))
    if (!e.labels.length || !e.labels[0].textContent.trim()) tell(e, 'no label');
  for (const e of document.querySelectorAll('button, summary, dialog, [role=img], [role=group]'))
    if (!named(e)) tell(e, 'no name');
  for (const e of document.querySelectorAll('th')) if (!e.scope) tell(e, 'no scope');
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) found.push('twice: ' + id);
  if (document.documentElement.lang !== 'en') found.push('no language');
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  let level = 0;
  for (const e of document.querySelectorAll('h1, h2, h3, h4')) {
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

WIDER = """() => [...document.querySelectorAll('body *')]
  .filter((e) => !e.parentElement.closest('.scene, .frame, svg') && e.getClientRects().length)
  .filter((e) => { const box = e.getBoundingClientRect(); return box.right > innerWidth + 0.5 || box.left < -0.5; })
  .map((e) => e.outerHTML.slice(0, 120))"""
"""Elements that reach beyond the window; what a frame cuts off does not count."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where Playwright or Chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra `dev`)")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)}); Debian's package is `chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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


def audit(page: Any) -> list[str]:
    """Findings of an audit of names, structure and contrast on a page as it is shown."""
    count, faint = page.evaluate(CONTRAST)
    assert count > 20, "texts were looked at"
    return [*page.evaluate(AUDIT), *faint]
