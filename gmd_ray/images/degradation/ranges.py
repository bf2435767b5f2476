"""Settings of degradations: ranges that values are drawn from, and probabilities."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from gmd_ray.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Range = tuple[float, float]

Steps = list[dict[str, Any]]
"""The operations applied to one image, in order: each a dict of `operation` and its drawn values."""


def check_ranges(settings: DataclassInstance) -> None:
    """Check the ranges, probabilities (fields with `_prob` in their name) and scale of a degradation.

    Raises:
        ConfigError: a range is not one, a probability is outside [0, 1], a JPEG quality is above 100, or the scale is
            below 1.
    """
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if field.type == "Range":
            low, high = value
            if not 0 <= low <= high < np.inf:
                raise ConfigError(f"degradation {name}=({low}, {high}): give (low, high) with 0 <= low <= high")
            if "jpeg_quality" in name and high > 100:
                raise ConfigError(f"degradation {name}={value}: JPEG knows 0 to 100")
        elif "_prob" in name and not 0 <= value <= 1:
            raise ConfigError(f"degradation {name}={value}: a probability lies in [0, 1]")
        elif name == "scale" and value < 1:
            raise ConfigError(f"degradation scale={value}: an integer of at least 1")
