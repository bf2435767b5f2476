"""Settings of the images that a run reads: the paired source domain and the target photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections import checks
from gmd_ray.config.sections.setting import setting


@dataclass
class DataConfig:
    """Published data sets, which presets name as `gopro/train/blur@` (`gmd-ray ls sets` lists them)."""

    root: str | None = setting(
        None, "Folder or URL that holds the published sets; it completes every path that ends in `@`.", path=True
    )


@dataclass
class SourceConfig:
    """Paired data of the domain that the student was trained on: two folders, or HQ images and a degradation preset."""

    hq: str | None = setting(None, "Folder or URL of clean images, read recursively.", published=True)
    lq: str | None = setting(
        None,
        "Folder or URL of their degraded versions; null degrades the images of `hq` on the fly.",
        published=True,
    )
    lq_template: str = setting(
        "{}", "Relative stem of the LQ file for the stem of an HQ file, such as `{}x4`.", check=checks.template
    )
    degradation: str | None = setting(
        None, "Degradation preset (`gmd-ray ls degradations` lists them), used if `lq` is not given."
    )
    degradation_args: dict[str, Any] = setting({}, "Single fields of that preset to replace.")
    gray: bool = setting(False, "Read every image as luma, replicated to three channels.")
    limit: int | None = setting(None, "Use only the first n pairs, sorted by id; null uses all.", ge=1)


@dataclass
class TargetConfig:
    """The low-quality photos to adapt to; nothing clean is known about them."""

    path: str | None = setting(None, "Folder or URL of the photos, read recursively.", published=True)
    gray: bool = setting(False, "Read every image as luma, replicated to three channels.")
    limit: int | None = setting(None, "Use only the first n images, sorted by id; null uses all.", ge=1)
    max_pixels: int = setting(
        120_000_000,
        "A larger image becomes a failed row instead of exhausting memory. Reading takes 10 to 14 bytes a pixel (28 "
        "for 16-bit files), which is 1.2 to 1.7 GB at the default and lets photos of 100 megapixels pass; a student "
        "without `student.tile` takes far more. Images above 1073741824 pixels are never read.",
        ge=1,
    )
