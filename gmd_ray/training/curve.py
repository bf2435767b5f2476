"""The figures of a fine-tune, on their way from the workers to a file, the recorder and the progress line.

Ray Train's controller outlives its workers, so it writes the curve; the driver has the terminal, so it shows it. The
file between them is `curve.jsonl` in the fine-tune's directory, with a line for each logged step and for each group of
workers that died. A resumed run reads in it which steps are logged already, so that none is logged twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from gmd_ray.progress import Progress, Recorder, duration
from gmd_ray.ray_utils.metrics import record_training
from gmd_ray.storage import is_remote
from gmd_ray.training.run_files import AGAIN, append_line, curve_lines, read_end

log = logging.getLogger("gmd_ray.training")

_COLLATERAL = re.compile(r"gloo|NCCL|connection (closed|reset)|broken pipe|ncclRemoteError", re.IGNORECASE)
"""Error messages of workers that lost the connection to another worker."""

POLL_S = 0.5
"""Seconds between two looks at the curve."""

REMOTE_POLL_S = 3.0
"""The same for a curve at a URL, where each look is a request."""

JOIN_S = 5.0
"""Seconds that the driver waits for its watching thread to end."""


class CurveKeeper(UserCallback):
    """Callback in the controller that logs each step once, even if workers repeat it after a failure.

    Args:
        path: path or URL of the curve.
        recorder: gets the same figures, by step.
        last_step: the last step that an earlier run logged; 0 if there was none.
        labels: run and name of the fine-tune, for the cluster's metrics.
    """

    def __init__(self, path: str, recorder: Recorder, last_step: int, labels: tuple[str, str]) -> None:
        self._path, self._recorder, self._last, self._labels = path, recorder, last_step, labels
        self._began = False
        self._dead: tuple[int, ...] = ()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        figures = dict(metrics[0])
        for earlier in figures.pop(AGAIN, []):
            self._log(dict(earlier))
        record_training(*self._labels, figures, saved=checkpoint is not None or not self._began)
        self._began, self._dead = True, ()
        if "leaving" in figures:
            self._append({key: figures.pop(key) for key in ("leaving", "left_s", "waits")} | {"saved": figures["step"]})
        self._log(figures)

    def _log(self, figures: dict[str, Any]) -> None:
        """Log the figures of a step, unless there are none or the step is logged already."""
        if "loss" not in figures or figures["step"] <= self._last:
            return
        self._last = figures["step"]
        # The file comes first: a crash between the two loses a point of the recorder, and never gives it one twice.
        self._append(figures)
        step = figures.pop("step")
        self._recorder.metrics(figures, step=step)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if any(map(is_preemption, worker_exceptions.values())):
            if self._dead == (ranks := tuple(sorted(worker_exceptions))):
                return  # until all of the group has ended, Ray Train tells of the same deaths at each poll
            self._dead = ranks
        rank, error = root_cause(worker_exceptions)
        self._append({"died": rank, "error": described(error), "with_it": len(worker_exceptions) - 1})

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self._path, f"{json.dumps(line)}\n".encode())


def root_cause(errors: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank whose failure ended the worker group, and its error.

    When a worker dies, the others fail because they lose their connection to it. Ray Train counts that as one failure.
    """

    def doubt(item: tuple[int, Exception]) -> tuple[int, int]:
        rank, error = item
        if isinstance(_unwrapped(error), RayActorError):
            return 0, rank
        return (2 if _COLLATERAL.search(str(error)) else 1), rank

    return min(errors.items(), key=doubt)


def is_preemption(error: Exception) -> bool:
    """True for a worker that died on a node that Ray was told would be taken away."""
    error = _unwrapped(error)
    return isinstance(error, RayActorError) and error.preempted


def described(error: Exception) -> str:
    """Describe an error of a worker in one line."""
    error = _unwrapped(error)
    if isinstance(error, RayActorError):
        detail = re.search(r"Worker exit detail: (.*?\.)\s", " ".join([*str(error).split(), ""]))
        return f"its process ended{f': {detail[1]}' if detail else ''}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _unwrapped(error: Exception) -> Exception:
    """The cause of a failed health check of Ray Train; any other error as it is."""
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, Exception) else error


class CurveWatcher:
    """Thread in the driver that shows the curve as it grows, and reports workers that died.

    Args:
        path: path or URL of the curve.
        label: the first words of its log lines.
        total: steps of the whole run.
        interval_s: seconds between two log lines.
        waiting_for: returns what the run is waiting for; called once per interval until the first step.
    """

    def __init__(
        self, path: str, label: str, total: int, interval_s: float, waiting_for: Callable[[], str] = lambda: "starting"
    ) -> None:
        self._path, self._label, self._total, self._interval_s = path, label, total, interval_s
        self._waiting_for = waiting_for
        self._begun = self._told = time.monotonic()
        self._offset = len(read_end(path, 0))
        self._poll_s = REMOTE_POLL_S if is_remote(path) else POLL_S
        self._progress: Progress | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="curve", daemon=True)

    def __enter__(self) -> CurveWatcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(JOIN_S)  # the thread may hang on a cluster that is gone

    def _watch(self) -> None:
        with contextlib.ExitStack() as stack:
            while not self._done.wait(min(self._poll_s, self._interval_s)):
                self._show(stack)
                if self._progress is None and time.monotonic() - self._told >= self._interval_s:
                    self._tell()
            self._show(stack)

    def _tell(self) -> None:
        """Log what the run is waiting for before its first step."""
        self._told = time.monotonic()
        try:
            what = self._waiting_for()
        except Exception as error:  # noqa: BLE001 -- the run itself reports a broken cluster
            what = f"starting; the cluster does not answer ({type(error).__name__})"
        log.info("%s: %s (%s)", self._label, what, duration(time.monotonic() - self._begun))

    def _show(self, stack: contextlib.ExitStack) -> None:
        try:
            content = read_end(self._path, self._offset)
        except OSError:  # the next look finds these lines too
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in curve_lines(whole):
            if "step" in line:
                if self._progress is None:  # the clock of the progress line starts with the first step
                    progress = Progress(self._label, self._total, "step", self._interval_s, initial=line["step"])
                    self._progress = stack.enter_context(progress)
                self._progress.update(line["step"] - self._progress.done, loss=f"{line['loss']:.4g}")
            elif "leaving" in line:
                workers = f"worker{'s' * (len(line['leaving']) > 1)} {', '.join(map(str, line['leaving']))}"
                then = "then all workers start again elsewhere" if line["waits"] else "and training goes on until then"
                saved = f"checkpoint at step {line['saved']}, {then}"
                log.warning("%s: %s: node goes in %s; %s", self._label, workers, duration(line["left_s"]), saved)
            else:
                others = f", {line['with_it']} stopped with it" if line.get("with_it") else ""
                log.warning("%s: worker %s died (%s)%s", self._label, line["died"], line["error"], others)
