"""Settings of what is read: the paired source domain and the target photos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """Published data sets, which presets name as `gopro/train/blur@` (`gmd-ray ls sets`)."""

    root: str | None = None
    """Folder or URL that they lie in; completes every path that ends in `@`."""


@dataclass
class SourceConfig:
    """Paired data of the domain the student was trained on: two folders, or HQ images and a degradation preset."""

    hq: str | None = None
    """Folder or URL of clean images, read recursively."""
    lq: str | None = None
    """Folder or URL of their degraded versions; leave out to degrade `hq` on the fly."""
    lq_template: str = "{}"
    """Relative stem of the LQ file for an HQ stem, e.g. `{}x4`."""
    degradation: str | None = None
    """Preset of `gmd_ray.images.degradation.degradations`, used where `lq` is not given."""
    degradation_args: dict[str, Any] = field(default_factory=dict)
    """Single fields of that preset to replace."""
    gray: bool = False
    """Read every image as luma, replicated to three channels."""
    limit: int | None = None
    """Use only the first n pairs, sorted by id."""


@dataclass
class TargetConfig:
    """The low-quality photos to adapt to; nothing clean is known about them."""

    path: str | None = None
    """Folder or URL, read recursively."""
    gray: bool = False
    """Read every image as luma, replicated to three channels."""
    limit: int | None = None
    """Use only the first n images, sorted by id."""
    max_pixels: int = 120_000_000
    """A larger image becomes a failed row instead of exhausting memory.

    Reading takes 10 to 14 bytes a pixel (28 of 16-bit files), a student without `student.tile` far more; nothing above
    1,073,741,824 is read."""
