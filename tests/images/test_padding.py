"""Padding to multiples against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gmd_ray.images.padding import pad, pad_to_multiple

SIZES = [(5, 7, 3, 0), (5, 7, 4, 6), (1, 3, 6, 9), (2, 9, 5, 1)]


@pytest.mark.parametrize(("height", "width", "bottom", "right"), SIZES)
def test_reflected_and_then_repeated(height: int, width: int, bottom: int, right: int) -> None:
    image = torch.rand(2, 3, height, width)
    expected = image.numpy()
    for axis, (side, count) in {2: (height, bottom), 3: (width, right)}.items():
        mirrored = [side - 2 - i for i in range(min(count, side - 1))]
        last = mirrored[-1] if mirrored else side - 1
        index = [*range(side), *mirrored, *[last] * (count - len(mirrored))]
        expected = np.take(expected, index, axis)
    assert np.array_equal(pad(image, bottom, right).numpy(), expected)


def test_to_multiples() -> None:
    image = torch.rand(1, 1, 8, 12)
    assert pad_to_multiple(image, 4) is image
    assert pad_to_multiple(image, 5).shape == (1, 1, 10, 15)
