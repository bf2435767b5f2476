"""Raters in a real browser: they click, tap and press keys, and the preference that was planted in them is found."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from gmd_ray.images.files.encode import decode_png
from gmd_ray.study.csv_answers import read_csv_answers
from gmd_ray.study.export_html import export_html
from gmd_ray.study.folder import Study, StudyKey
from gmd_ray.study.result import study_result
from tests.browser import PHONE, WIDE, WIDER, OpenPage, audit, until
from tests.study.conftest import NAMES, attentive
from tests.study.served import page_data, running

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEYS = {"left": "ArrowLeft", "tie": "ArrowDown", "right": "ArrowRight"}


def ready(page: Page, number: int, total: int) -> None:
    """Wait until a pair can be answered."""
    page.locator("#count", has_text=re.compile(f"^Pair {number} of {total}$")).wait_for()
    page.locator("[data-choice=left]:enabled").wait_for()


def pair_shown(page: Page, study: Study) -> str:
    """The id of the pair whose pictures the page shows."""
    source = page.locator("#left").get_attribute("src") or ""
    (found,) = [pair.id for pair in study.pairs if source.endswith(pair.left)]
    return found


def rate_all(page: Page, study: Study, key: StudyKey, preferred: str, how: str) -> None:
    total = len(study.pairs)
    page.locator("#start").click()
    for number in range(1, total + 1):
        ready(page, number, total)
        choice = attentive(key, pair_shown(page, study), preferred)
        if how == "keys":
            page.keyboard.press(KEYS[choice])
        elif how == "taps":
            page.locator(f"[data-choice={choice}]").tap()
        else:
            page.locator(f"[data-choice={choice}]").click()
    page.get_by_role("heading", name="Thank you").wait_for()


def test_raters_with_links_whose_preference_is_found(study: Study, key: StudyKey, open_page: OpenPage) -> None:
    with running(study) as (server, book), open_page:
        raters = book.invite(["Ann", "<img src=x onerror=alert(1)>", "Cem"])
        ways = [("keys", WIDE, {}), ("clicks", WIDE, {}), ("taps", PHONE, {"has_touch": True, "is_mobile": True})]
        for rater, (how, window, options) in zip(raters, ways, strict=True):
            page = open_page(window, **options)
            page.goto(f"{server.url}/r/{rater.token}/")
            rate_all(page, study, key, NAMES[1], how)
            assert "10 of 10" in page.locator("#answered").inner_text()
        result = study_result(study, key, book.answers())
    (found,) = result.comparisons
    assert (found.wins, found.ties, found.losses) == (0, 0, 18)
    assert [(rater.checks_failed, rater.contradictions, rater.excluded) for rater in result.raters] == [
        (0, 0, False)
    ] * 3
    assert all(0 < rater.seconds < 30 for rater in result.raters)


def test_a_rater_stops_comes_back_and_changes_an_answer(study: Study, open_page: OpenPage) -> None:
    total = len(study.pairs)
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        page = open_page()
        page.goto(f"{server.url}/r/{ann.token}/")
        page.locator("#start").click()
        for number in (1, 2):
            ready(page, number, total)
            page.keyboard.press("ArrowLeft")
        ready(page, 3, total)
        assert [each.choice for each in book.answers()] == ["left", "left"]

        page = open_page()  # another day, another browser
        page.goto(f"{server.url}/r/{ann.token}/")
        assert page.locator("#start").inner_text() == "Go on"
        page.locator("#start").click()
        ready(page, 3, total)
        page.keyboard.press("Backspace")
        ready(page, 2, total)
        assert page.locator("[data-choice=left]").get_attribute("aria-pressed") == "true"
        pair = pair_shown(page, study)
        page.keyboard.press("ArrowRight")
        ready(page, 3, total)
        choices = {each.pair: each.choice for each in book.answers()}
        assert choices[pair] == "right"
        assert sorted(choices.values()) == ["left", "right"]


def test_a_key_held_down_or_pressed_twice_gives_one_answer(study: Study, open_page: OpenPage) -> None:
    total = len(study.pairs)
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        page = open_page()
        page.goto(f"{server.url}/r/{ann.token}/")
        page.locator("#start").click()
        ready(page, 1, total)
        pair = pair_shown(page, study)
        # Pressed again while the first answer is on its way, with another choice.
        page.route("**/answers", lambda route: (page.wait_for_timeout(200), route.continue_()))
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        ready(page, 2, total)
        assert [(each.pair, each.choice) for each in book.answers()] == [(pair, "left")]
        page.keyboard.down("ArrowLeft")
        page.keyboard.down("ArrowLeft")  # the second one repeats
        ready(page, 3, total)
        page.wait_for_timeout(100)
        assert len(book.answers()) == 2


def test_a_lost_connection_is_said_and_the_answer_can_be_given_again(study: Study, open_page: OpenPage) -> None:
    total = len(study.pairs)
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        page = open_page()
        page.goto(f"{server.url}/r/{ann.token}/")
        page.locator("#start").click()
        ready(page, 1, total)
        page.route("**/answers", lambda route: route.fulfill(status=200, body="no JSON"))
        page.keyboard.press("ArrowLeft")
        page.locator("#message", has_text="Not saved").wait_for()
        assert book.answers() == []
        page.unroute("**/answers")
        page.keyboard.press("ArrowLeft")
        ready(page, 2, total)
        assert len(book.answers()) == 1


@pytest.mark.parametrize("window", [WIDE, PHONE])
def test_zoom_shows_the_same_part_of_both_pictures(study: Study, open_page: OpenPage, window: dict[str, int]) -> None:
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        page = open_page(window)
        page.goto(f"{server.url}/r/{ann.token}/")
        page.locator("#start").click()
        ready(page, 1, len(study.pairs))

        def styles() -> list[tuple[str, str]]:
            found: list[tuple[str, str]] = page.evaluate(
                "() => ['left', 'right'].map((id) => document.getElementById(id).style)"
                ".map((style) => [style.transform, style.transformOrigin])"
            )
            assert found[0] == found[1]
            return found

        def under(x: float, y: float) -> tuple[float, float]:
            """The point of the left picture, as fractions, at a place of its view."""
            return tuple(
                page.evaluate(
                    """([x, y]) => {
                        const view = document.querySelector('.view').getBoundingClientRect();
                        const image = document.getElementById('left').getBoundingClientRect();
                        return [(view.left + x * view.width - image.left) / image.width,
                                (view.top + y * view.height - image.top) / image.height];
                    }""",
                    [x, y],
                )
            )

        still = styles()
        box = page.locator(".view").first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
        assert styles() != still
        assert under(0.25, 0.75) == pytest.approx((0.25, 0.75), abs=0.01)  # the point that was clicked stays there
        before = under(0.5, 0.5)
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        clicked = styles()
        page.mouse.wheel(0, -200)
        until(page, lambda: styles() != clicked)
        assert under(0.5, 0.5) == pytest.approx(before, abs=0.01)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
        page.mouse.up()
        assert under(0.7, 0.5) == pytest.approx(before, abs=0.01)  # the picture follows the hand
        dragged = styles()
        page.keyboard.press("Shift+ArrowDown")
        assert styles() != dragged
        page.keyboard.press("z")
        assert styles() == still
        page.locator("#zoom").click()
        assert styles() != still
        page.keyboard.press("ArrowLeft")
        ready(page, 2, len(study.pairs))
        assert styles() == still  # the next pair begins whole
        assert len(book.answers()) == 1


@pytest.mark.parametrize("window", [WIDE, PHONE, {"width": 844, "height": 390}])
def test_every_page_fits_its_window(study: Study, open_page: OpenPage, window: dict[str, int], tmp_path: Path) -> None:
    export_html(study, tmp_path / "study.html")
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        for address in (f"{server.url}/", f"{server.url}/r/{ann.token}/", (tmp_path / "study.html").as_uri()):
            page = open_page(window)
            page.goto(address)
            assert page.evaluate(WIDER) == []
            if page.locator("#name").count():
                page.locator("#name").fill("Ann")
            if page.locator("#start").count():
                page.locator("#start").click()
                ready(page, 1, len(study.pairs))
                assert page.evaluate(WIDER) == []
                # Both pictures and the answers are seen at once.
                for part in page.locator(".view, [data-choice]").all():
                    box = part.bounding_box()
                    assert box is not None
                    assert box["y"] >= 0
                    assert box["y"] + box["height"] <= window["height"]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_an_audit_finds_nothing(study: Study, open_page: OpenPage, tmp_path: Path, colours: str) -> None:
    export_html(study, tmp_path / "study.html")
    with running(study) as (server, book), open_page:
        (ann,) = book.invite(["Ann"])
        page = open_page(color_scheme=colours)
        page.goto((tmp_path / "study.html").as_uri())
        assert audit(page, 10) == []
        page.goto(f"{server.url}/")
        assert audit(page, 2) == []
        page.goto(f"{server.url}/r/{ann.token}/")
        assert audit(page, 10) == []
        page.locator("#start").click()
        for number in range(1, len(study.pairs) + 1):
            ready(page, number, len(study.pairs))
            assert number > 1 or audit(page, 8) == []
            page.keyboard.press("ArrowDown")
        page.get_by_role("heading", name="Thank you").wait_for()
        assert audit(page, 3) == []


def test_a_page_without_a_server(study: Study, key: StudyKey, open_page: OpenPage, tmp_path: Path) -> None:
    size = export_html(study, tmp_path / "study.html")
    assert size == (tmp_path / "study.html").stat().st_size
    files = []
    for number, name in enumerate(("=cmd|'/C calc'!A0", 'Ben "B", <script>alert(1)</script>')):
        page = open_page()
        page.goto((tmp_path / "study.html").as_uri())
        page.locator("#start").click()
        assert page.locator("#compare").is_hidden()  # without a name it does not start
        page.locator("#name").fill(name)
        page.locator("#start").click()
        total = len(study.pairs)
        embedded = json.loads(page.locator("#study").inner_text())
        pictures = embedded["pictures"]
        of_pictures = {(pictures[left], pictures[right]): pair for pair, left, right, *_ in embedded["pairs"]}
        for pair in range(1, total + 1):
            if pair == 4:  # a reload loses nothing
                page.reload()
                assert page.locator("#name").input_value() == name.removeprefix("=")
                page.locator("#start").click()
            ready(page, pair, total)
            sources = [page.locator(side).get_attribute("src") for side in ("#left", "#right")]
            shown = of_pictures[sources[0], sources[1]]
            page.keyboard.press(KEYS[attentive(key, shown, NAMES[number])])
        page.get_by_role("heading", name="Thank you").wait_for()
        with page.expect_download() as download:
            page.locator("#save").click()
        files.append(tmp_path / download.value.suggested_filename)
        download.value.save_as(files[-1])
    with files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['Ben "B", <script>alert(1)</script>'] * len(study.pairs)
    assert not files[0].read_text().splitlines()[1].split(",")[2].strip('"').startswith("=")
    found = read_csv_answers(study, files)
    assert found.left_out == {}
    (comparison,) = study_result(study, key, found.answers).comparisons
    assert (comparison.raters, comparison.wins, comparison.losses) == (2, 6, 6)


def test_the_page_without_a_server_holds_the_pictures_exactly_and_no_method(study: Study, tmp_path: Path) -> None:
    export_html(study, tmp_path / "study.html")
    page = (tmp_path / "study.html").read_bytes()
    for word in (*NAMES, "alert(1)", "photo0", "degraded", "repeated"):
        assert word.encode() not in page
    for name, uri in page_data(page)["pictures"].items():
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert np.array_equal(np.asarray(image.convert("RGB")), np.rint(decode_png(study.picture(name)) * 255))
