"""The figures of a fine-tune: from the workers' reports to a file, the recorder and the progress line.

Ray Train's controller outlives its workers, so it is the one that keeps the curve; a terminal is the driver's. The file
between them is `curve.jsonl` in the fine-tune's directory: one line per logged step, and one per group of workers that
died. It says what was logged even after the driver was killed, so no step is ever logged twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from gmd_ray.progress import Progress, Recorder, duration
from gmd_ray.training.run_files import curve_lines

log = logging.getLogger("gmd_ray.training")

_COLLATERAL = re.compile(r"gloo|NCCL|connection (closed|reset)|broken pipe|ncclRemoteError", re.IGNORECASE)
"""What workers say whose partner has gone."""

POLL_S = 0.5
JOIN_S = 5.0


class CurveKeeper(UserCallback):
    """Runs in the controller: writes each logged step once, however often the workers come back to it.

    Args:
        path: of the curve.
        recorder: gets the same figures by step.
        last_step: the last step that an earlier run logged; 0 where there was none.
    """

    def __init__(self, path: str, recorder: Recorder, last_step: int) -> None:
        self._path, self._recorder, self._last = path, recorder, last_step

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        figures = dict(metrics[0])
        if "loss" not in figures or figures["step"] <= self._last:
            return
        self._last = figures["step"]
        # The file first: a crash between the two leaves a point out of the recorder rather than in it twice.
        self._append(figures)
        step = figures.pop("step")
        self._recorder.metrics(figures, step=step)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, error = root_cause(worker_exceptions)
        self._append({"died": rank, "error": described(error), "with_it": len(worker_exceptions) - 1})

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def root_cause(errors: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank that took its group with it, and its error.

    Where one worker dies, the others lose their connection to it: that is one death, and Ray Train counts one.
    """

    def doubt(item: tuple[int, Exception]) -> tuple[int, int]:
        rank, error = item
        if isinstance(_unwrapped(error), RayActorError):
            return 0, rank
        return (2 if _COLLATERAL.search(str(error)) else 1), rank

    return min(errors.items(), key=doubt)


def described(error: Exception) -> str:
    """An error of a worker in one line."""
    error = _unwrapped(error)
    if isinstance(error, RayActorError):
        detail = re.search(r"Worker exit detail: (.*?\.)\s", " ".join([*str(error).split(), ""]))
        return f"its process ended{f': {detail[1]}' if detail else ''}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _unwrapped(error: Exception) -> Exception:
    """What Ray Train's health check failed with; any other error as it is."""
    inner = getattr(error, "health_check_failure", error)
    return inner if isinstance(inner, Exception) else error


class CurveWatcher:
    """Runs in the driver: shows the curve as it grows, and says when a worker died.

    Args:
        path: of the curve.
        label: what its lines begin with.
        total: steps of the whole run.
        interval_s: between two lines.
        waiting_for: tells what the run waits for as long as there is no step; asked once an interval.
    """

    def __init__(
        self, path: Path, label: str, total: int, interval_s: float, waiting_for: Callable[[], str] = lambda: "starting"
    ) -> None:
        self._path, self._label, self._total, self._interval_s = path, label, total, interval_s
        self._waiting_for = waiting_for
        self._begun = self._told = time.monotonic()
        self._offset = path.stat().st_size if path.is_file() else 0
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
        self._thread.join(JOIN_S)  # it may wait for a cluster that is gone

    def _watch(self) -> None:
        with contextlib.ExitStack() as stack:
            while not self._done.wait(min(POLL_S, self._interval_s)):
                self._show(stack)
                if self._progress is None and time.monotonic() - self._told >= self._interval_s:
                    self._tell()
            self._show(stack)

    def _tell(self) -> None:
        """Say what keeps the first step from coming."""
        self._told = time.monotonic()
        try:
            what = self._waiting_for()
        except Exception as error:  # noqa: BLE001 -- whatever ails the cluster: it is the run that will say so
            what = f"starting; the cluster does not answer ({type(error).__name__})"
        log.info("%s: %s (%s)", self._label, what, duration(time.monotonic() - self._begun))

    def _show(self, stack: contextlib.ExitStack) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in curve_lines(whole):
            if "step" in line:
                if self._progress is None:  # its clock starts when the workers have
                    progress = Progress(self._label, self._total, "step", self._interval_s, initial=line["step"])
                    self._progress = stack.enter_context(progress)
                self._progress.update(line["step"] - self._progress.done, loss=f"{line['loss']:.4g}")
            else:
                others = f", {line['with_it']} stopped with it" if line.get("with_it") else ""
                log.warning("%s: worker %s died (%s)%s", self._label, line["died"], line["error"], others)
