"""The report in a real browser: its comparator, its size on a phone, and what an accessibility audit asks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmd_ray.config import Config
from gmd_ray.pairstore.store import find_store
from gmd_ray.pairstore.thresholds import read_gate
from gmd_ray.report import write_report
from gmd_ray.report.gate_page import gate_page
from gmd_ray.report.sheet import make_sheet
from tests.browser import BROKEN, PHONE, WIDE, WIDER, audit, chromium, opened
from tests.evaluation.conftest import draw, save_student, write_store
from tests.report.test_write import Decision, judge

PLACES = """(root) => [...document.querySelectorAll(root + ' .scene img, ' + root + ' .film img')].map((img) => {
  const box = img.getBoundingClientRect(), frame = img.parentElement.getBoundingClientRect();
  return [(box.left - frame.left) / frame.width, (box.top - frame.top) / frame.height, box.width / frame.width];
})"""
"""Left and top edge and width of every version, as shares of its frame."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with everything in it."""
    root = tmp_path_factory.mktemp("report")
    students = {name: save_student(root / f"{name}.safetensors", i, 0.3 - 0.2 * i)
                for i, name in enumerate(("baseline", "adapted"))}  # fmt: skip
    for name, count in (("target", 6), ("source", 4), ("truth", 7)):
        draw(root / name, "lq", "hq", count)
    cfg = Config(out=str(root / "out"))
    cfg.student.path = students["baseline"]
    e = cfg.evaluation
    e.target_lq, e.target_hq = str(root / "target" / "lq"), str(root / "target" / "hq")
    e.source_hq, e.source_lq = str(root / "source" / "hq"), str(root / "source" / "lq")
    e.pairs_hq, e.report_images, e.device = str(root / "truth" / "hq"), 6, "cpu"
    e.metrics, e.pool.batch_size, e.remark = ["psnr", "ssim"], 4, "Photos of a toy world."
    write_store(root / "out", [5.5, 5.0, 4.5, 4.2, 4.0, 3.5, None])
    log = root / "out" / "finetune" / "adapted" / "curve.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f'{{"step": {i}, "loss": {1 / i}, "images_per_s": 9.0}}\n' for i in range(1, 9)))
    decision = Decision(False, ["holds: target psnr", "refused: source psnr"], "3")
    return Path(write_report(cfg, judge(cfg, students), decision=decision))


def divider(page: Any) -> float:
    """Where the right version begins, in per cent of the frame."""
    text = page.eval_on_selector("#compare-first .layer.right", "e => getComputedStyle(e).clipPath")
    assert text.startswith("inset(0px 0px 0px ")
    return float(text.removeprefix("inset(0px 0px 0px ").rstrip("%)"))


def pixels(page: Any, selector: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"), float)


def test_the_divider_follows_keys_and_the_mouse(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=WIDE) as page:
        assert divider(page) == 50
        page.focus("#compare-first .divider")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert divider(page) == 53
        page.focus("#compare-first .stage")
        page.keyboard.press("ArrowLeft")
        assert divider(page) == 48
        box = page.locator("#compare-first .stage").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.48, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 60, steps=4)
        page.mouse.up()
        assert divider(page) == pytest.approx(80, abs=1)
        page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 60)
        assert divider(page) == pytest.approx(80, abs=1), "it was let go"
        assert page.input_value("#compare-first .divider") == "80"


def test_zoom_and_position_are_those_of_all_versions(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=WIDE) as page:
        at_first = np.array(page.evaluate(PLACES, "#compare-first"))
        assert len(at_first) >= 2 + 4 + 2
        assert np.allclose(at_first, [0, 0, 1])
        page.focus("#compare-first .zoom")
        for _ in range(12):
            page.keyboard.press("ArrowRight")
        found = np.array(page.evaluate(PLACES, "#compare-first"))
        assert np.allclose(found, [-1.5, -1.5, 4], atol=0.02), "the middle stays in the middle"
        assert page.inner_text("#compare-first .level") == "4×"
        box = page.locator("#compare-first .stage").bounding_box()
        page.mouse.move(box["x"] + 30, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 30 + box["width"] / 2, box["y"] + 100, steps=5)
        page.mouse.up()
        found = np.array(page.evaluate(PLACES, "#compare-first"))
        assert np.allclose(found, [-1.0, -1.5, 4], atol=0.02), "all follow the mouse"
        page.focus("#compare-first .stage")
        for _ in range(60):
            page.keyboard.press("ArrowDown")
        found = np.array(page.evaluate(PLACES, "#compare-first"))
        assert np.allclose(found, [-1.0, -3.0, 4], atol=0.02), "and stop at the edge"
        page.click("#compare-first .reset")
        assert np.allclose(page.evaluate(PLACES, "#compare-first"), [0, 0, 1])
        page.mouse.dblclick(box["x"] + box["width"] / 4, box["y"] + 200)
        left, _, width = np.array(page.evaluate(PLACES, "#compare-first")).T
        assert np.allclose(width, 4)
        assert np.allclose(left, 0.25 - 4 * 0.25, atol=0.02), "the point under the mouse stays"


def test_any_two_versions_and_their_difference(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=WIDE) as page:
        labels = page.eval_on_selector_all("#compare-first .pick-left option", "all => all.map((e) => e.label)")
        assert labels == ["untouched photo", "restored (before)", "adapted (after)", "ground truth"]
        assert pixels(page, "#compare-first .blend").max() > 10
        page.select_option("#compare-first .pick-left", label="ground truth")
        page.select_option("#compare-first .pick-right", label="ground truth")
        assert page.inner_text("#compare-first .tag.left") == page.inner_text("#compare-first .tag.right")
        assert pixels(page, "#compare-first .blend")[8:-8, 8:-8].max() == 0, "nothing differs from itself"
        page.check("#compare-first .difference")
        assert pixels(page, "#compare-first .scene")[40:-40, 20:-20].max() == 0
        assert page.is_disabled("#compare-first .divider")
        page.click("#compare-first .panel >> nth=0")
        assert page.inner_text("#compare-first .tag.right") == "untouched photo"
        assert pixels(page, "#compare-first .scene")[40:-40, 20:-20].max() > 10


def test_a_photo_opens_by_keyboard_and_closes_again(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=WIDE) as page:
        thumb = page.locator(".thumb >> nth=2")
        name = thumb.get_attribute("data-id")
        thumb.focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#closer .id") == name
        assert page.evaluate("document.getElementById('closer').contains(document.activeElement)")
        page.click("#closer .step >> nth=1")
        assert page.inner_text("#closer .id") == page.locator(".thumb >> nth=3").get_attribute("data-id")
        page.keyboard.press("Escape")
        assert not page.is_visible("#closer")
        following = page.evaluate("document.activeElement.dataset.id")
        assert following == page.locator(".thumb >> nth=3").get_attribute("data-id"), "the reader goes on from there"


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_an_audit_finds_nothing(browser: Any, report: Path, size: dict[str, int], colours: str) -> None:
    with opened(browser, report, viewport=size, color_scheme=colours) as page:
        assert page.evaluate(BROKEN, "thead th") == []
        page.eval_on_selector_all("details", "all => all.forEach((e) => { e.open = true; })")
        assert audit(page) == []
        page.evaluate("document.querySelector('.thumb').click()")
        assert audit(page) == []


def test_nothing_is_wider_than_a_phone(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=PHONE, has_touch=True) as page:
        page.eval_on_selector_all("details", "all => all.forEach((e) => { e.open = true; })")
        assert page.evaluate(WIDER) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("#compare-first .stage").bounding_box()["width"] > 300, "most of the width is the picture"
        small = page.eval_on_selector_all(
            "button, select, summary",
            "all => all.filter((e) => e.getClientRects().length && e.getBoundingClientRect().height < 24).length",
        )
        assert small == 0, "targets that a finger hits (WCAG 2.2, 2.5.8)"
        page.tap(".thumb >> nth=1")
        assert page.is_visible("#closer .stage")
        assert page.evaluate(WIDER) == []


def test_gate_page_and_contact_sheet_fit_a_phone_too(browser: Any, report: Path, tmp_path: Path) -> None:
    store = find_store(str(report.parent))
    pages = {"gate": gate_page(read_gate(store, 4.2)), "sheet": make_sheet(store, 4.2, count=2)}
    for name, html in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(html)
        with opened(browser, path, viewport=PHONE) as page:
            assert page.evaluate(WIDER) == []
            assert audit(page) == []


def test_the_audit_finds_planted_faults(browser: Any, report: Path, tmp_path: Path) -> None:
    path = tmp_path / "faulty.html"
    faults = (
        '<img src="data:,"><input><button></button><h4>low</h4><p style="color: #999; background: #fff">faint</p>'
        '<p style="width: 500px">wide</p>'
    )
    path.write_text(report.read_text().replace("</main>", f"{faults}</main>"))
    with opened(browser, path, viewport=PHONE) as page:
        found = audit(page)
        assert [line.partition(":")[0] for line in found] == [
            "no alt",
            "no label",
            "no name",
            "skipped heading",
            "2.85",
        ]
        assert len(page.evaluate(WIDER)) == 1


def test_without_javascript_pictures_and_figures_stay(browser: Any, report: Path) -> None:
    with opened(browser, report, viewport=WIDE, java_script_enabled=False) as page:
        assert page.locator("noscript p").is_visible()
        assert not page.is_visible("#compare-first")
        assert page.locator(".thumb >> nth=0").is_visible()
        assert page.is_visible("text=Target test set")
