"""The images of the test sets, and the choice of those that the report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from gmd_ray.config import Config
from gmd_ray.config.validate import check_test_sets
from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.sets.run_inputs import RunInputs

T = TypeVar("T")

Item = dict[str, Any]
"""One row of the stream: `dataset`, `id`, URIs `lq` and `hq` ("" for none), `data` (the bytes of an LQ image without a
URI) and `picture` (True if PNGs are kept for the report)."""


def held_out_items(cfg: Config, inputs: RunInputs | None = None) -> list[Item]:
    """List the target and source test sets of `cfg.evaluation`, each sorted by id.

    Args:
        cfg: the settings.
        inputs: folder listings that the run shares; the folders are listed here if it is None.

    Raises:
        ConfigError: no test set is set, or one side of a test set is missing.
        DataError: images without their partner.
    """
    e, inputs = cfg.evaluation, inputs or RunInputs()
    check_test_sets(cfg)
    if e.target_lq is None and e.source_hq is None:
        raise ConfigError("nothing to evaluate on: set evaluation.target_lq (and target_hq), or evaluation.source_hq")
    items: list[Item] = []
    if e.target_lq is not None and e.target_hq is not None:
        pairs = inputs.pairs(e.target_hq, e.target_lq, e.target_template, e.limit)
        items += [_item("target", pair.id, pair.lq, pair.hq) for pair in pairs]
    elif e.target_lq is not None:
        items += [_item("target", image.id, image.uri, None) for image in inputs.images(e.target_lq, e.limit)]
    if e.source_hq is not None:
        pairs = inputs.pairs(e.source_hq, e.source_lq, e.source_template, e.limit)
        items += [_item("source", pair.id, pair.lq, pair.hq) for pair in pairs]
    for dataset in ("target", "source"):
        for item in spread([item for item in items if item["dataset"] == dataset], e.report_images):
            item["picture"] = True
    return items


def students_with_teacher(cfg: Config, students: Iterable[str]) -> list[str]:
    """The students whose output the teacher projects at test time (`evaluation.online`), in the order of `students`.

    Raises:
        ConfigError: `evaluation.online` names an unknown student.
    """
    known, online = list(students), cfg.evaluation.online
    if isinstance(online, bool):
        return known if online else []
    for name in online:
        if name not in known:
            raise ConfigError(f"evaluation.online: no student {name!r}; {nearest(name, known)}")
    return [name for name in known if name in online]


def with_teacher_row(student: str) -> str:
    """The name of the table row for a student followed by the teacher."""
    return f"{student}+teacher"


def _item(dataset: str, image: str, lq: str | None, hq: str | None) -> Item:
    return {"dataset": dataset, "id": image, "lq": lq or "", "hq": hq or "", "data": b"", "picture": False}


def spread(items: Sequence[T], n: int) -> list[T]:
    """At most n items, evenly spaced over the sequence, both ends included: chosen by position, not by result."""
    if len(items) <= n:
        return list(items)
    if n < 2:
        return list(items[:n])
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]
