"""The pages of a run in a real browser."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from gmd_ray.verbs.pages.serve import run_site
from tests.browser import PHONE, WIDE, WIDER, OpenPage, audit
from tests.serving.conftest import HOSTILE, serving


def photo(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("window", [WIDE, PHONE])
def test_a_photo_is_dropped_compared_and_saved(run: Path, open_page: OpenPage, window: dict[str, int]) -> None:
    with serving(run_site(str(run))) as server, open_page:
        page = open_page(window)
        page.goto(f"{server.url}/")
        name = "<b>holiday</b>.png"
        page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": photo(80, 60)})
        page.locator("#outcome:not([hidden])").wait_for()
        assert "80 × 60 pixels" in page.locator("#facts").inner_text()
        assert page.evaluate(WIDER) == []

        def divider() -> float:
            slider, line = (page.locator(what).bounding_box() for what in (".slider", ".divider"))
            assert slider is not None
            assert line is not None
            return (line["x"] + 1 - slider["x"]) / slider["width"]

        slider = page.locator(".slider input")
        assert divider() == pytest.approx(0.5, abs=0.02)
        slider.focus()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        assert divider() == pytest.approx(0.4, abs=0.02)
        box = slider.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
        assert divider() == pytest.approx(0.8, abs=0.05)
        with page.expect_download() as download:
            page.locator("#save").click()
        assert download.value.suggested_filename.endswith("_restored.png")
        assert Image.open(download.value.path()).size == (80, 60)


def test_a_file_that_is_no_photo_is_explained(run: Path, open_page: OpenPage) -> None:
    with serving(run_site(str(run))) as server, open_page:
        page = open_page(faults_expected=True)
        page.goto(f"{server.url}/")
        page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.locator("#state.error", has_text="This file cannot be restored").wait_for()
        page.locator("#file").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": photo(20, 20)})
        page.locator("#outcome:not([hidden])").wait_for()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_an_audit_finds_nothing(run: Path, open_page: OpenPage, colours: str) -> None:
    with serving(run_site(str(run))) as server, open_page:
        page = open_page(PHONE, color_scheme=colours)
        page.goto(f"{server.url}/")
        page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": photo(80, 60)})
        page.locator("#outcome:not([hidden])").wait_for()
        assert audit(page, 10) == []
        for path in ("pairs", "pairs?find=nothing", f"pair?id={quote(HOSTILE.format(0))}"):
            page.goto(f"{server.url}/{path}")
            assert audit(page, 5) == []


@pytest.mark.parametrize("window", [WIDE, PHONE])
def test_pairs_are_filtered_and_looked_at(run: Path, open_page: OpenPage, window: dict[str, int]) -> None:
    with serving(run_site(str(run))) as server, open_page:
        page = open_page(window)
        page.goto(f"{server.url}/")
        assert page.evaluate(WIDER) == []
        page.get_by_role("link", name="Pairs").click()
        assert page.locator(".pairs li").count() == 5
        page.wait_for_load_state("networkidle")
        assert page.evaluate(WIDER) == []
        page.locator("#state").select_option("rejected")
        page.get_by_role("button", name="Show").click()
        page.locator(".pager, .pairs li").nth(1).wait_for()
        assert [chip.inner_text() for chip in page.locator(".pairs .chip").all()] == ["rejected", "rejected"]
        page.locator(".pairs a").first.click()
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").inner_text() == HOSTILE.format(1)
        assert page.evaluate(WIDER) == []
        for picture in page.locator("img").all():
            assert picture.evaluate("(image) => image.naturalWidth") > 0
            assert picture.get_attribute("alt")
        page.goto(f"{server.url}/report.html")
        assert page.title() == "ran"
