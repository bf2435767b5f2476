"""Figures of the driver's machine while a run goes on: CPU, memory, disk, network and, with `nvidia-ml-py`, GPUs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import platform
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gmd_ray.tracking.outbox import Entry, Outbox

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger("gmd_ray.tracking")


@contextlib.contextmanager
def sampling(outbox: Outbox, run_id: str, interval_s: float) -> Iterator[None]:
    """Send figures to a run while a `with` block runs, through its outbox, so that none is lost while MLflow is away.

    The keys are MLflow's own, `system/<host>/<name>`, which its page of system metrics shows; the step is the number of
    seconds since the epoch over `interval_s`, so that a resumed run goes on with higher ones.

    Args:
        outbox: of the run.
        run_id: the run.
        interval_s: seconds between two samples; 0 takes none.
    """
    if not interval_s:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(outbox, run_id, interval_s, stop), daemon=True, name="gmd-system")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _sample(outbox: Outbox, run_id: str, interval_s: float, stop: threading.Event) -> None:
    monitors: list[BaseMetricsMonitor] = []
    while not stop.wait(interval_s):
        monitors = monitors or _monitors()  # the imports take a moment, which short commands need not spend
        figures: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            figures |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        now = time.time()
        step = int(now // interval_s)
        host = platform.node() or "driver"
        metrics = [[f"system/{host}/{key}", float(value), int(now * 1000), step] for key, value in figures.items()]
        if metrics and not stop.is_set():
            outbox.put(Entry(run_id, "batch", (metrics, []), "system metrics"))


_KINDS = {"cpu": "CPUMonitor", "disk": "DiskMonitor", "network": "NetworkMonitor", "gpu": "GPUMonitor"}


def _monitors() -> list[BaseMetricsMonitor]:
    found: list[BaseMetricsMonitor] = []
    for name, kind in _KINDS.items():
        try:
            module = importlib.import_module(f"mlflow.system_metrics.metrics.{name}_monitor")
            found.append(getattr(module, kind)())
        except (ImportError, RuntimeError):  # psutil or nvidia-ml-py is not installed, or there is no driver
            log.debug("no system metrics of %s", name, exc_info=True)
    return found
