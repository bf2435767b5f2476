"""The interval over seeds and images, against simulation and against the interval over images alone."""

from __future__ import annotations

import numpy as np
import pytest

from gmd_ray.ablation.intervals import two_way_interval
from gmd_ray.evaluation.statistics import mean_interval


def coverage(
    seed_sd: float, image_sd: float, noise_sd: float, images: int, groups: int | None = None
) -> tuple[float, float]:
    """Share of 300 simulated tables of three seeds whose interval holds the true mean, 0, and the mean width.

    The width is in units of the interval that knows how much everything varies: 2 * 1.96 standard errors.
    """
    rng, hits, runs, width = np.random.default_rng(5), 0, 300, 0.0
    for _ in range(runs):
        each = groups or images
        of_image = np.repeat(rng.normal(0, image_sd, each), images // each)
        values = rng.normal(0, seed_sd, (3, 1)) + of_image + rng.normal(0, noise_sd, (3, images))
        names = None if groups is None else [str(k) for k in range(groups) for _ in range(images // groups)]
        found = two_way_interval(values, names, resamples=500)
        assert found is not None
        hits += found[0] <= 0 <= found[1]
        width += (found[1] - found[0]) / runs
    error = np.sqrt(seed_sd**2 / 3 + image_sd**2 / (groups or images) + noise_sd**2 / (3 * images))
    return hits / runs, width / (2 * 1.96 * error)


@pytest.mark.parametrize(
    ("seed_sd", "image_sd", "noise_sd", "images", "groups", "widest"),
    [
        (0.0, 1.0, 0.3, 60, None, 1.2),  # images alone vary
        (0.05, 1.0, 0.3, 60, None, 1.3),
        (0.2, 1.0, 0.3, 60, None, 1.7),  # seeds make as much of it as images
        (1.0, 0.3, 0.1, 60, None, 2.2),  # seeds make most of it: Student's t of three values is 2.2 times as wide
        (0.05, 1.0, 0.3, 64, 8, 1.4),  # images of a group go together
    ],
)
def test_it_covers_the_true_mean_as_often_as_it_says(
    seed_sd: float, image_sd: float, noise_sd: float, images: int, groups: int | None, widest: float
) -> None:
    """Never far below 95 %, three standard errors of 300 simulations being 3.8 %, and never wider than it has to be."""
    share, width = coverage(seed_sd, image_sd, noise_sd, images, groups)
    assert share >= 0.95 - 0.038
    assert width <= widest


def test_images_that_go_together_taken_for_single_ones_cover_too_little() -> None:
    rng, hits = np.random.default_rng(6), 0
    for _ in range(200):
        values = np.repeat(rng.normal(0, 1, (1, 8)), 8, axis=1) + rng.normal(0, 0.1, (3, 64))
        low, high, _ = two_way_interval(values, resamples=500) or (0, 0, 0)
        hits += low <= 0 <= high
    assert hits / 200 < 0.75


def test_one_seed_is_the_interval_over_images() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, 80)
    ours, theirs = two_way_interval(values[None]), mean_interval(list(values))
    assert ours is not None
    assert theirs is not None
    assert np.allclose(ours[:2], theirs[:2], atol=0.03)
    assert (ours[2] < 0.05) == (theirs[2] < 0.05)


def test_equal_seeds_add_nothing() -> None:
    values = np.random.default_rng(2).normal(0.2, 1, (1, 80))
    one, three = two_way_interval(values), two_way_interval(np.repeat(values, 3, axis=0))
    assert one is not None
    assert three is not None
    assert np.allclose(one, three, atol=0.02)


def test_it_is_repeatable_and_follows_p() -> None:
    values = np.random.default_rng(3).normal(0, 1, (3, 40)) + 0.8
    assert two_way_interval(values) == two_way_interval(values)
    low, _, p = two_way_interval(values) or (0, 0, 1)
    assert low > 0
    assert p < 0.05


def test_too_few_groups_and_values_that_are_not_finite_get_none() -> None:
    assert two_way_interval(np.zeros((3, 5))) is None
    assert two_way_interval(np.zeros((3, 20)), ["a", "b"] * 10) is None
    assert two_way_interval(np.full((2, 20), np.nan)) is None
