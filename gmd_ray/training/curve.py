"""The figures of a fine-tune: from the workers' reports to a file, the recorder and the progress line.

Ray Train's controller outlives its workers, so it is the one that keeps the curve; a terminal is the driver's. The file
between them is `curve.jsonl` in the fine-tune's directory: one line per logged step, and one per worker that died. It
says what was logged even after the driver was killed, so no step is ever logged twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from ray.train import UserCallback

from gmd_ray.progress import Progress, Recorder

log = logging.getLogger("gmd_ray.training")

POLL_S = 0.5


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
        for rank, error in worker_exceptions.items():
            self._append({"died": rank, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The logged steps, in order; a last line that was torn by a crash is cut off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [line for line in map(json.loads, whole.splitlines()) if "step" in line]


class CurveWatcher:
    """Runs in the driver: shows the curve as it grows, and says when a worker died."""

    def __init__(self, path: Path, label: str, total: int, interval_s: float) -> None:
        self._path, self._label, self._total, self._interval_s = path, label, total, interval_s
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
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.ExitStack() as stack:
            while not self._done.wait(POLL_S):
                self._show(stack)
            self._show(stack)

    def _show(self, stack: contextlib.ExitStack) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in map(json.loads, whole.splitlines()):
            if "step" in line:
                if self._progress is None:  # its clock starts when the workers have
                    progress = Progress(self._label, self._total, "step", self._interval_s, initial=line["step"])
                    self._progress = stack.enter_context(progress)
                self._progress.update(line["step"] - self._progress.done, loss=f"{line['loss']:.4g}")
            else:
                log.warning("%s: worker %s died (%s)", self._label, line["died"], line["error"])
