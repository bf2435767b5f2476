"""What to measure: the images of the test sets, and which of them to keep pictures of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from gmd_ray.config import Config
from gmd_ray.config.validate import check_test_sets
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.listing import list_images
from gmd_ray.images.sets.pairs import list_pairs

T = TypeVar("T")

Item = dict[str, Any]
"""A row of the stream: `dataset`, `id`, URIs `lq` and `hq` ("" for none), `data` (the LQ image's bytes where there is
no URI) and `picture` (keep PNGs for the report)."""


def held_out_items(cfg: Config) -> list[Item]:
    """The target and source test sets of `cfg.evaluation`, sorted by id within each.

    Raises:
        ConfigError: no test set is configured, or one that cannot be read as pairs.
        DataError: images without their partner.
    """
    e = cfg.evaluation
    check_test_sets(cfg)
    if e.target_lq is None and e.source_hq is None:
        raise ConfigError("nothing to evaluate on: set evaluation.target_lq (and target_hq), or evaluation.source_hq")
    items: list[Item] = []
    if e.target_lq is not None and e.target_hq is not None:
        pairs = list_pairs(e.target_hq, e.target_lq, e.target_template, e.limit)
        items += [_item("target", pair.id, pair.lq, pair.hq) for pair in pairs]
    elif e.target_lq is not None:
        items += [_item("target", image.id, image.uri, None) for image in list_images(e.target_lq, e.limit)]
    if e.source_hq is not None:
        pairs = list_pairs(e.source_hq, e.source_lq, e.source_template, e.limit)
        items += [_item("source", pair.id, pair.lq, pair.hq) for pair in pairs]
    for dataset in ("target", "source"):
        for item in spread([item for item in items if item["dataset"] == dataset], e.report_images):
            item["picture"] = True
    return items


def taught_students(cfg: Config, students: Iterable[str]) -> list[str]:
    """The students whose output the teacher projects at test time (`evaluation.online`), in their own order.

    Raises:
        ConfigError: a name that is no student's.
    """
    known, online = list(students), cfg.evaluation.online
    if isinstance(online, bool):
        return known if online else []
    for name in online:
        if name not in known:
            raise ConfigError(f"evaluation.online: no student {name!r}; {nearest(name, known)}")
    return [name for name in known if name in online]


def taught(student: str) -> str:
    """The row of a student and then the teacher."""
    return f"{student}+teacher"


def _item(dataset: str, image: str, lq: str | None, hq: str | None) -> Item:
    return {"dataset": dataset, "id": image, "lq": lq or "", "hq": hq or "", "data": b"", "picture": False}


def spread(items: Sequence[T], n: int) -> list[T]:
    """At most n items, evenly over the sequence, both ends included: chosen by place, not by how they look."""
    if len(items) <= n:
        return list(items)
    if n < 2:
        return list(items[:n])
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]
