"""Charts: what stands in them, that they follow the page's colours, and that they do not grow with the data."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gmd_ray.report import charts
from tests.report.page import Page

HOSTILE = '<script>alert(1)</script>&"'


def test_a_chart_is_part_of_the_page() -> None:
    svg = charts.curves({HOSTILE: [(1, 0.5), (2, 0.25)], "other": [(1, 0.4), (2, 0.3)]}, "loss")
    found = Page(svg)
    assert found.named("svg")[0]["viewbox"] == f"0 0 {charts.WIDTH} {charts.HEIGHT}"
    assert HOSTILE in str(found.named("svg")[0]["aria-label"])
    assert not found.named("script")
    assert not found.named("style"), "a rule in a chart would hold for the whole page"
    assert not re.search(r"https?:|#0[0-9a-b]0|font-family|<!|\?xml|metadata|xlink", svg)
    assert "stroke: var(--accent)" in svg
    assert "stroke: var(--l1)" in svg


def test_ids_of_two_charts_differ_and_their_references_hold() -> None:
    page = charts.scatter([1, 2], [2, 1], "PSNR", True) + charts.gains([1.0, -1.0], 0.0, -0.5, 0.5, "gain")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert references
    assert references <= set(ids)


@pytest.mark.parametrize("higher", [True, False])
def test_points_of_a_scatter_are_coloured_by_the_side_they_are_on(higher: bool) -> None:
    before, after = np.arange(10.0), np.arange(10.0) + np.array([1, 1, 1, -1, 1, -1, 1, 1, 1, 1])
    svg = charts.scatter(before, after, "PSNR", higher)
    points = {name: len(re.findall(rf"<use [^>]*fill: var\(--{name}\)", svg)) for name in ("good", "bad")}
    assert points == ({"good": 8, "bad": 2} if higher else {"good": 2, "bad": 8})
    assert f"{8 if higher else 2} of 10 points" in svg


def test_a_histogram_says_its_counts() -> None:
    svg = charts.histogram([5.0, 5.1], [4.0], 4.5)
    assert "2 accepted, 1 rejected, threshold 4.5" in svg
    assert ">threshold 4.5</text>" in svg
    for name in ("accepted", "rejected"):
        assert f"fill: var(--{name})" in svg
    assert "var(--rejected)" not in charts.histogram([5.0], [], 4.5)


def test_gains_state_mean_and_interval() -> None:
    svg = charts.gains([0.5, 1.5, -0.5], 0.5, 0.1, 0.9, "gain, dB")
    assert "Gains of 3 images: mean 0.5, 95 % interval 0.1 to 0.9" in svg
    assert "interval" not in charts.gains([0.5], 0.5, None, None, "gain, dB")


def test_the_yield_of_each_threshold() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    _, curve = charts.score_charts([3.0, 4.0], [1.0, 2.0], 2.5, lambda limit: float(np.mean(scores >= limit)))
    assert curve["note"] == "The threshold accepts 50.0 % of the scored pairs."
    assert len(charts.score_charts([3.0], [1.0], 2.5, None)) == 1


def test_charts_do_not_grow_with_the_data() -> None:
    many = np.random.default_rng(0).normal(size=50_000)
    assert len(charts.scatter(many, many + 0.1, "PSNR", True)) < 250_000
    assert len(charts.curves({"x": list(enumerate(many.tolist()))}, "loss")) < 60_000
    assert len(charts.histogram(many, many, 0.0)) < 60_000


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0]])
def test_equal_values_have_an_axis_too(values: list[float]) -> None:
    for svg in (
        charts.scatter(values, values, "PSNR", True),
        charts.gains(values, values[0], None, None, "gain"),
        charts.histogram(values, [], values[0]),
        charts.curves({"x": list(enumerate(values))}, "loss"),
    ):
        assert "nan" not in svg
