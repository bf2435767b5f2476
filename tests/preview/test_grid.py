"""The grid of a sweep, as the command line names it."""

from __future__ import annotations

import pytest

from gmd_ray.config import TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError
from gmd_ray.preview.grid import INJECTIONS, parse_grid


def test_axes_are_combined() -> None:
    points = parse_grid("strength,injection", TeacherConfig(steps=7))
    assert len(points) == 3 * 4
    assert {point.teacher.strength for point in points} == {0.3, 0.6, 1.0}
    assert {point.teacher.steps for point in points} == {7}, "the rest is as it was"
    assert len({point.name for point in points}) == 12


def test_values_may_be_given() -> None:
    points = parse_grid("strength=0.2/0.4, steps=3, injection=none", TeacherConfig())
    assert [point.name for point in points] == [
        "strength 0.2, steps 3, injection none", "strength 0.4, steps 3, injection none",
    ]  # fmt: skip
    assert points[1].teacher.injection == INJECTIONS["none"]


@pytest.mark.parametrize("injection", INJECTIONS)
def test_the_words_of_a_point_are_the_settings_that_it_has(injection: str) -> None:
    [point] = parse_grid(f"strength=0.4,injection={injection},steps=3", TeacherConfig())
    read = load_config(point.words.split()).teacher
    assert (read.strength, read.steps, read.injection) == (0.4, 3, point.teacher.injection)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strenght", "no axis 'strenght'; .*strength"),
        ("injection=al", "no injection 'al'"),
        ("strength=0", "strength=0: a number above 0, at most 1"),
        ("strength=2", "at most 1"),
        ("strength=x", "strength=x: a number"),
        ("steps=2.5", "a whole number"),
        ("strength=.1/.2/.3/.4/.5/.6/.7,injection", "28 combinations, 24 at most"),
        ("", "no axis ''"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_grid(text, TeacherConfig())
