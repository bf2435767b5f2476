"""The metrics of a run, for Prometheus. Ray exports them from every node, with `ray_` before each name.

Ray adds `_total` to the name of a counter. Counters and histograms stay until the node's agent ends. A gauge is
exported once for each time that it is set, and dropped after two report intervals (20 s), so that a thread sets each
one again until its process ends. Nothing is recorded where this process is not part of a Ray session.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Bounds of the buckets of stage times."""
SCORES = (*(i / 10 for i in range(1, 11)), *range(2, 11), *range(20, 101, 10))
"""Bounds of the buckets of scores: steps of 0.1 up to 1, of 1 up to 10 and of 10 up to 100, for any scorer's scale."""

REFRESH_S = 5.0
"""Seconds after which gauges are set again."""


@dataclass(frozen=True)
class Measure:
    """One metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which Prometheus finds it."""
        if self.kind == "counter":
            return (f"ray_{self.name}_total",)
        if self.kind == "gauge":
            return (f"ray_{self.name}",)
        return tuple(f"ray_{self.name}_{end}" for end in ("bucket", "sum", "count"))


_RUN, _STAGE = ("run",), ("run", "stage")
_REPLICA = ("stage", "model", "replica")
_TRAINING = ("run", "fine_tune")
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("gmd_images", "counter", "images", "Images whose row is written, by state: accepted, rejected, failed.",
                ("run", "state")),
        Measure("gmd_images_waiting", "gauge", "images", "Images of the run that have no row yet.", _RUN),
        Measure("gmd_pass_rate", "gauge", "share", "Share of the scored images of this run that are accepted.", _RUN),
        Measure("gmd_stage_seconds", "histogram", "seconds", "Time of one image in a stage: restore, project, score.",
                _STAGE, SECONDS),
        Measure("gmd_score", "histogram", "the scorer's scale", "Scores of the written rows.", _RUN, SCORES),
        Measure("gmd_replicas", "gauge", "actors", "1 for each actor whose model is loaded.", _REPLICA),
        Measure("gmd_replica_busy_seconds", "counter", "seconds", "Time that an actor's model was at work.", _REPLICA),
        Measure("gmd_train_step", "gauge", "steps", "Last logged step of a fine-tune.", _TRAINING),
        Measure("gmd_train_loss", "gauge", "the loss's scale", "Loss, as mean since the step logged before.",
                _TRAINING),
        Measure("gmd_train_images_per_second", "gauge", "images/s", "Crops trained on, over all workers.", _TRAINING),
        Measure("gmd_train_data_wait", "gauge", "share", "Share of the time that rank 0 waited for data.", _TRAINING),
        Measure("gmd_checkpoint_time_seconds", "gauge", "Unix seconds", "Time of a fine-tune's last checkpoint, or of "
                "its start; its age is `time()` minus this.", _TRAINING),
    )
}  # fmt: skip
"""All metrics by name."""


def record(name: str, value: float, labels: Mapping[str, str]) -> None:
    """Add to a counter, set a gauge, or observe a value of a histogram.

    Args:
        name: a key of MEASURES.
        value: in the metric's unit.
        labels: a value for each of the metric's labels.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    metric = _metric(name)
    kind = MEASURES[name].kind
    if kind == "counter":
        if value > 0:  # Ray refuses 0
            metric.inc(value, labels)
    elif kind == "gauge":
        _GAUGES.set(name, value, labels)
    else:
        metric.observe(value, labels)


class _Gauges:
    """The gauges of this process, which a thread sets again as long as its Ray session lasts."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def set(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        with self._lock:
            self._values[name, tuple(labels.items())] = value
            if self._thread is None:
                self._thread = threading.Thread(target=self._refresh, name="gmd-gauges", daemon=True)
                self._thread.start()
        _metric(name).set(value, labels)

    def _refresh(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            ray = sys.modules.get("ray")
            with self._lock:
                if ray is None or not ray.is_initialized():
                    self._values.clear()
                    self._thread = None
                    return
                for (name, labels), value in self._values.items():
                    _metric(name).set(value, dict(labels))


_GAUGES = _Gauges()


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    measure = MEASURES[name]
    text = f"{measure.text} Unit: {measure.unit}."
    if measure.kind == "histogram":
        return metrics.Histogram(name, text, list(measure.bounds), tag_keys=measure.labels)
    kind = metrics.Counter if measure.kind == "counter" else metrics.Gauge
    return kind(name, text, tag_keys=measure.labels)


def run_label(out: str) -> str:
    """The label `run`: the last two parts of a run directory, without options of its URL."""
    return "/".join(out.partition("?")[0].rstrip("/").split("/")[-2:])


def record_rows(
    run: str,
    states: Mapping[str, int],
    so_far: Mapping[str, int],
    columns: Mapping[str, Sequence[Any]],
    waiting: int,
) -> None:
    """Record a block of rows that is written.

    Args:
        run: of `run_label`.
        states: accepted, rejected and failed -> number of the block's rows.
        so_far: the same of all rows of this run, with the block's.
        columns: `score` and `seconds_<stage>` -> value of each row, None for a row without one; others are ignored.
        waiting: images that have no row yet.
    """
    for state, count in states.items():
        record("gmd_images", count, {"run": run, "state": state})
    record("gmd_images_waiting", waiting, {"run": run})
    scored = so_far.get("accepted", 0) + so_far.get("rejected", 0)
    if scored:
        record("gmd_pass_rate", so_far.get("accepted", 0) / scored, {"run": run})
    for name, values in columns.items():
        head, _, stage = name.partition("_")
        for value in values:
            if value is None:
                continue
            if head == "seconds":
                record("gmd_stage_seconds", value, {"run": run, "stage": stage})
            elif name == "score":
                record("gmd_score", value, {"run": run})


def record_training(run: str, fine_tune: str, figures: Mapping[str, float], saved: bool) -> None:
    """Record a report of a fine-tune.

    Args:
        run: of `run_label`.
        fine_tune: its name.
        figures: `step`, and those of `loss`, `images_per_s` and `data_wait` that the report has.
        saved: a checkpoint came with it.
    """
    labels = {"run": run, "fine_tune": fine_tune}
    names = {
        "step": "gmd_train_step",
        "loss": "gmd_train_loss",
        "images_per_s": "gmd_train_images_per_second",
        "data_wait": "gmd_train_data_wait",
    }
    for figure, name in names.items():
        if figure in figures:
            record(name, figures[figure], labels)
    if saved:
        record("gmd_checkpoint_time_seconds", time.time(), labels)


class ReplicaClock:
    """Counts the time that the model of an actor is at work.

    Args:
        stage: restore, project or score.
        model: name of the model.
    """

    def __init__(self, stage: str, model: str) -> None:
        self._labels = {"stage": stage, "model": model, "replica": replica_id()}
        record("gmd_replicas", 1, self._labels)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time of a `with` block."""
        began = time.monotonic()
        try:
            yield
        finally:
            record("gmd_replica_busy_seconds", time.monotonic() - began, self._labels)


def replica_id() -> str:
    """The name of this actor, or the first letters of its id; the process id outside of actors."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return str(os.getpid())
    context = ray.get_runtime_context()
    return context.get_actor_name() or (context.get_actor_id() or str(os.getpid()))[:8]


def model_name(config: Any) -> str:
    """The name of a model in labels and actor names: the last part of its path, else its metric or method."""
    path = getattr(config, "path", None)
    if path:
        return os.path.basename(str(path).rstrip("/")) or str(path)
    return str(getattr(config, "metric", None) or getattr(config, "method", None) or "model")


class ActorNames:
    """Options of Ray Data's `ray_remote_args_fn` that name each actor of a pool `stage/number/model`.

    Ray wants names that are unique within a driver, so that a stage's second pool is `stage.2`.
    """

    given: ClassVar[list[str]] = []
    """All names that this process has given, in their order."""
    _pools: ClassVar[Counter[str]] = Counter()

    def __init__(self, stage: str, model: str) -> None:
        self._pools[stage] += 1
        pool = self._pools[stage]
        self._head, self._model, self._count = f"{stage}.{pool}" if pool > 1 else stage, model, 0

    def __call__(self) -> dict[str, Any]:
        self._count += 1
        self.given.append(f"{self._head}/{self._count}/{self._model}")
        return {"name": self.given[-1]}
