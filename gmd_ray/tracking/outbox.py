"""Delivery to MLflow that survives the absence of the server."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmd_ray.config.secrets import redact
from gmd_ray.text import one_line
from gmd_ray.tracking.client import connect, is_refusal, store_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger("gmd_ray.tracking")

RETRY_S = 30.0
"""Seconds between two tries, so that a dead server does not slow down every training step."""


@dataclass(frozen=True)
class Entry:
    """One request to MLflow about one run."""

    run_id: str
    kind: str
    """Kind of the request: batch, params, artifact, text, status or delete."""
    payload: tuple[Any, ...]
    label: str
    """Description of the content, for the log."""


class Outbox:
    """Sends entries in order, keeps them while the server is away, and logs at the end the ones that were never sent.

    Entries that the server refuses (for a deleted run, a file that is gone, or a folder without write permission) are
    dropped with a warning: tracking never ends a run that has begun. One outbox serves a run and its children within a
    process. A pickled copy starts with an empty queue of its own, and sends the rest when its process exits.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._reset()

    def _reset(self) -> None:
        self._client: MlflowClient | None = None
        self._queue: deque[Entry] = deque()
        self._retry_at = 0.0
        self._lock = threading.RLock()
        self._at_exit = False
        self.filled_runs: set[str] = set()
        """Ids of the runs for which more than a status was queued."""

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.uri = state["uri"]
        self._reset()

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    @property
    def away(self) -> bool:
        """True if the last try failed less than `RETRY_S` ago and entries are waiting."""
        return bool(self._queue) and time.monotonic() < self._retry_at

    def put(self, entry: Entry) -> None:
        with self._lock:
            self._queue.append(entry)
            if not self.away:
                self.flush()

    def flush(self) -> bool:
        """Send the queued entries; return True if none is left."""
        with self._lock:
            while self._queue:
                entry = self._queue[0]
                try:
                    self._send(entry)
                except store_errors() as error:
                    if not is_refusal(error):
                        self._postpone(error)
                        return False
                    log.warning("MLflow refused %s of run %s: %s", entry.label, entry.run_id, _line(error))
                self._queue.popleft()
            if self._retry_at:
                log.info("MLflow at %s answers again; everything kept meanwhile is sent", redact(self.uri))
                self._retry_at = 0.0
            return True

    def close(self) -> None:
        """Try a last time, and log the entries that are lost."""
        delivered = self.flush()
        with self._lock:
            counts = Counter(entry.label for entry in self._queue)
            self._queue.clear()
            self._retry_at = 0.0  # a later flush must not claim that the lost entries were sent
            if self._at_exit:
                self._at_exit = False
                atexit.unregister(self.close)
        if delivered:
            return
        lost = ", ".join(f"{label} (x{n})" if n > 1 else label for label, n in counts.items())
        log.error("MLflow at %s did not come back; lost: %s", redact(self.uri), lost)

    def _postpone(self, error: Exception) -> None:
        if not self._retry_at:
            log.warning(
                "MLflow at %s does not answer (%s); the run goes on, figures are kept and sent later",
                redact(self.uri),
                _line(error),
            )
        self._retry_at = time.monotonic() + RETRY_S
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self.close)

    def _send(self, entry: Entry) -> None:
        if entry.kind == "batch":
            metrics, tags = entry.payload
            self.client.log_batch(entry.run_id, metrics=metrics, tags=tags)
        elif entry.kind == "params":
            self._send_params(entry.run_id, entry.payload[0])
        elif entry.kind == "artifact":
            self.client.log_artifact(entry.run_id, *entry.payload)
        elif entry.kind == "text":
            self.client.log_text(entry.run_id, *entry.payload)
        elif entry.kind == "delete":
            self.client.delete_run(entry.run_id)
        else:
            assert entry.kind == "status", entry.kind
            self.client.set_terminated(entry.run_id, *entry.payload)

    def _send_params(self, run_id: str, values: dict[str, str]) -> None:
        """Send parameters. MLflow keeps the first value of each, so changed values become tags `changed.<key>`."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(run_id).data.params
        params = [Param(key, value) for key, value in values.items() if key not in known]
        tags = [RunTag(f"changed.{key}", value) for key, value in values.items() if known.get(key, value) != value]
        for start in range(0, max(len(params), len(tags)), 100):  # MLflow's limit of a batch
            self.client.log_batch(run_id, params=params[start : start + 100], tags=tags[start : start + 100])


def _line(error: Exception) -> str:
    return redact(one_line(error, 200))
