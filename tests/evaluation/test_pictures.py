"""The choice of pictures: those spread over the set, and those of the largest gains and losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.evaluation.actor import SCHEMA
from gmd_ray.evaluation.pictures import KeptPictures


def items(count: int, spread: set[int]) -> list[dict[str, Any]]:
    return [{"dataset": "target", "id": f"{i:02}", "picture": i in spread} for i in range(count)]


def rows(image: int, gain: float, higher: bool = True, truth: float | None = None) -> list[dict[str, Any]]:
    known = {"dataset": "target", "id": f"{image:02}"}
    values = {"baseline": 5.0, "adapted": 5.0 + gain} | ({} if truth is None else {"hq": truth})
    measured = [
        known | {"student": name, "metric": "m", "value": value, "higher_is_better": higher}
        for name, value in values.items()
    ]
    return [*measured, *(known | {"name": name, "png": b"x"} for name in ("lq", "adapted"))]


def kept(choice: KeptPictures, gains: list[float], batch: int, **values: Any) -> set[str]:
    """The ids of what is kept after all images have come in batches."""
    for start in range(0, len(gains), batch):
        batches = [rows(i, gains[i], **values) for i in range(start, min(start + batch, len(gains)))]
        table = pa.Table.from_pylist([row for of in batches for row in of], schema=SCHEMA)
        assert choice.take(table)["png"].null_count == 2 * len(batches) + (len(batches) if "truth" in values else 0)
    return set(choice.pictures["id"].to_pylist())


@pytest.mark.parametrize("batch", [1, 4, 30])
@pytest.mark.parametrize("higher", [True, False])
def test_the_extremes_of_the_whole_set_are_kept_in_whatever_batches_they_come(batch: int, higher: bool) -> None:
    gains = np.random.default_rng(0).normal(size=30).tolist()
    all_items = items(30, {0, 29})
    found = kept(KeptPictures(all_items, ["m"], 3), gains, batch, higher=higher)
    order = [f"{i:02}" for i in np.argsort(gains)]
    assert found == {"00", "29", *order[:3], *order[-3:]}
    assert all(item["picture"] for item in all_items), "whoever gains most must have been pictured"


def test_a_no_reference_metric_counts_by_its_distance_to_the_truth() -> None:
    """Values of 5 and 5 + gain, truth 6: a value of 6 gains most, a value of 9 loses most."""
    found = kept(KeptPictures(items(4, set()), ["m"], 1), [0.5, 1.0, 2.0, 4.0], 2, truth=6.0)
    assert found == {"01", "03"}


def test_without_pictures_asked_for_none_is_made() -> None:
    all_items = items(3, set())
    assert kept(KeptPictures(all_items, ["m"], 0), [1.0, 2.0, 3.0], 3) == set()
    assert not any(item["picture"] for item in all_items)


def test_both_versions_stay_and_other_rows_pass() -> None:
    choice = KeptPictures(items(2, set()), ["m"], 1)
    table = pa.Table.from_pylist([*rows(0, 1.0), *rows(1, 2.0), {"dataset": "source", "id": "s", "seconds": 1.0}],
                                 schema=SCHEMA)  # fmt: skip
    assert choice.take(table)["id"].to_pylist() == ["00", "00", "01", "01", "s"]
    assert choice.pictures["name"].to_pylist() == ["lq", "adapted"] * 2
