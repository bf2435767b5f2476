"""The data sets of a run by their roles, as they were listed."""

from __future__ import annotations

from dataclasses import dataclass, field

from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.pairs import PairFile

SOURCE, TARGET, TRUTH = "source", "target", "target's truth"
TARGET_TEST, SOURCE_TEST, REPORT = "target test", "source test", "truth for the report"


@dataclass(frozen=True)
class Listed:
    """One data set of a run."""

    role: str
    """One of the six roles above."""
    lq: str | None
    """Folder of its low-quality images; None if they are made from `hq`."""
    hq: str | None
    """Folder of its clean images; None if it has none."""
    count: int
    """Number of images, or pairs, that the run uses."""
    pairs: tuple[PairFile, ...] = field(default=(), repr=False, compare=False)
    """The pairs of a paired set; empty for others."""
    photos: tuple[ImageFile, ...] = field(default=(), repr=False, compare=False)
    """The images of a set of single images; empty for others."""

    def __str__(self) -> str:
        what = "images" if self.hq is None or self.role == REPORT else "pairs"
        where = " and ".join(path for path in (self.lq, self.hq) if path)
        return f"{self.role}: {self.count:,} {what}, {where}"
