"""The best of a column, where the direction of a metric says it and where the ground truth does."""

from __future__ import annotations

import pytest

from gmd_ray.report.tables import metric_table
from tests.evaluation.summaries.test_verdict import evaluation


@pytest.mark.parametrize(("truth", "best"), [([], ["lq"]), ([11.0, 11.2], ["adapted"])])
def test_the_best_is_nearest_to_the_truth_where_it_is_known(truth: list[float], best: list[str]) -> None:
    """On real noise NIQE calls the noisy photo better than its ground truth."""
    values = {"lq": [6.7, 6.8], "baseline": [6.9, 6.8], "adapted": [11.2, 11.3]} | ({"hq": truth} if truth else {})
    table = metric_table(evaluation(higher=False, metric="niqe", target=values), "target")
    assert [row["student"] for row in table["rows"] if row["cells"][0]["best"]] == best


def test_equal_means_are_both_the_best() -> None:
    values = {"lq": [20.0, 21.0], "baseline": [30.0, 31.0], "adapted": [31.0, 30.0]}
    table = metric_table(evaluation(target=values), "target")
    assert [row["student"] for row in table["rows"] if row["cells"][0]["best"]] == ["baseline", "adapted"]
