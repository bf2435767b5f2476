"""Results of a model, compared with those that were due."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gmd_ray.generation.outputs import images_of, scores_of


def image(**values: float) -> torch.Tensor:
    """Two images of gray, in one of which so many of 300 values are something else: `v` of `n`."""
    images = torch.full((2, 3, 10, 10), 0.5)
    images[1].view(-1)[: int(values.get("n", 0))] = values.get("v", 0.0)
    return images


@pytest.mark.parametrize(
    ("values", "clipped"),
    [
        ({}, 0),
        ({"v": 1.0, "n": 300}, 0),
        ({"v": 1.01, "n": 300}, 0),  # rounding
        ({"v": -0.2, "n": 3}, 0),  # a hundredth of the values
        ({"v": -0.2, "n": 4}, 1),
        ({"v": 1.5, "n": 300}, 1),
        ({"v": 50.0, "n": 30}, 1),  # a tenth of the values
    ],
)
def test_strays_are_counted(values: dict[str, float], clipped: int) -> None:
    images = image(**values)
    found, count = images_of(images, (2, 3, 10, 10), "it")
    assert torch.equal(found, images)
    assert count == clipped


@pytest.mark.parametrize("values", [{"v": 50.0, "n": 31}, {"v": -0.6, "n": 200}, {"v": 128.0, "n": 300}])
def test_another_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"it ranges from .* an image's values are those in \[0, 1\]"):
        images_of(image(**values), (2, 3, 10, 10), "it")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_will_do(kind: torch.dtype) -> None:
    found, _ = images_of(image().to(kind), (2, 3, 10, 10), "it")
    assert found.dtype == torch.float32
    assert torch.equal(found, image())
    assert scores_of(torch.tensor([1.5, 2.0], dtype=kind, requires_grad=True), 2, "it") == [1.5, 2.0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (torch.zeros(3), r"it has the shape \(3,\), and \(2,\) is due"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (torch.zeros(()), r"shape \(\)"),
        (torch.zeros(2, dtype=torch.int64), "it is a tensor of int64, not of floats"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.tensor([1.0, float("inf")]), "it is not finite"),
        (torch.tensor([1.0, 1e39], dtype=torch.float64), "it is not finite"),
        ([1.0, 2.0], "it is a builtins.list, not a tensor"),
    ],
)
def test_what_is_no_score_is_refused(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scores_of(values, 2, "it")
