"""Delivery to MLflow that survives the absence of the server."""

from __future__ import annotations

import atexit
import json
import logging
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from gmd_ray.config.secrets import redact
from gmd_ray.storage import get, local_copy, open_filesystem, put, remove
from gmd_ray.text import one_line
from gmd_ray.tracking.client import connect, is_refusal, store_errors

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput
    from mlflow.tracking import MlflowClient

log = logging.getLogger("gmd_ray.tracking")

RETRY_S = 30.0
"""Seconds between two tries, so that a dead server does not slow down every training step."""


@dataclass(frozen=True)
class Entry:
    """One request to MLflow about one run."""

    run_id: str
    kind: str
    """Kind of the request: batch, params, inputs, artifact, text, status or delete."""
    payload: tuple[Any, ...]
    """Its content, of plain values that JSON can hold."""
    label: str
    """Description of the content, for the log."""


class Outbox:
    """Sends entries in order, and keeps them while the server is away: in memory, and in a file if it stays away.

    Entries that the server refuses (for a deleted run, a file that is gone, or a folder without write permission) are
    dropped with a warning: tracking never ends a run that has begun. One outbox serves a run and its children within a
    process. A pickled copy starts with an empty queue of its own, and sends the rest when its process exits.

    The file is written at each try that fails, so that a process that is killed loses at most what came since.
    """

    def __init__(self, uri: str, folder: str | None = None) -> None:
        """Make an empty outbox; nothing is sent yet.

        Args:
            uri: address of MLflow.
            folder: path or URL of the folder for what could not be sent; None keeps nothing beyond this process.
        """
        self.uri, self.folder = uri, folder
        self._reset()

    def _reset(self) -> None:
        self._client: MlflowClient | None = None
        self._queue: deque[Entry] = deque()
        self._retry_at = 0.0
        self._lock = threading.RLock()
        self._at_exit = False
        self._files: list[str] = []
        self.unsent = ""
        """After `close`: what could not be sent, in words; empty if all was."""
        self.filled_runs: set[str] = set()
        """Ids of the runs for which more than a status was queued."""

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.uri, self.folder = state["uri"], state["folder"]
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
            self._discard()
            return True

    def take_kept(self, but_status_of: str | None = None) -> int:
        """Queue what earlier processes have kept in the folder; returns the number of entries.

        Args:
            but_status_of: id of a run that goes on, whose old status is not wanted.
        """
        if self.folder is None:
            return 0
        with self._lock:
            filesystem, root = open_filesystem(self.folder)
            infos = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
            before = len(self._queue)
            for path in sorted(info.path for info in infos if info.base_name.endswith(".json")):
                try:
                    found = [
                        Entry(run, kind, tuple(payload), label)
                        for run, kind, payload, label in _lines(filesystem, path)
                    ]
                except (ValueError, TypeError) as error:
                    log.warning("%s: not entries of this program (%s); left as it is", path, one_line(error, 100))
                    continue
                self._files.append(path)
                ended = ("status", "delete")
                self._queue.extend(e for e in found if e.run_id != but_status_of or e.kind not in ended)
            return len(self._queue) - before

    def close(self) -> None:
        """Try a last time; keep the rest in the folder, or log that it is lost where there is none."""
        delivered = self.flush()
        with self._lock:
            counts = Counter(entry.label for entry in self._queue)
            kept = bool(self._queue) and self._keep()
            self._queue.clear()
            self._retry_at = 0.0  # a later flush must not claim that these entries were sent
            self._files = []
            if self._at_exit:
                self._at_exit = False
                atexit.unregister(self.close)
        if delivered:
            self.unsent = ""
            return
        what = ", ".join(f"{label} (x{n})" if n > 1 else label for label, n in counts.items())
        where = redact(self.uri)
        if kept:
            self.unsent = (
                f"MLflow at {where} did not come back; kept in {redact(str(self.folder))}, and sent by the next "
                f"command on this run directory or by `gmd-ray sync`: {what}"
            )
            log.warning("%s", self.unsent)
        else:
            self.unsent = f"MLflow at {where} did not come back; lost: {what}"
            log.error("%s", self.unsent)

    def _keep(self) -> bool:
        """Write the queue to one file, in place of those that it was taken from; return True if that worked."""
        if self.folder is None:
            return False
        document = [[entry.run_id, entry.kind, list(entry.payload), entry.label] for entry in self._queue]
        try:
            filesystem, root = open_filesystem(self.folder)
            name = f"{root}/{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
            put(filesystem, name, json.dumps(document).encode())
        except (OSError, ValueError) as error:
            log.warning("%s: cannot be written (%s)", redact(self.folder), _line(error))
            return False
        self._discard()
        self._files = [name]
        return True

    def _discard(self) -> None:
        """Delete the files whose entries are in the queue, in another file, or sent."""
        if self._files and self.folder is not None:
            filesystem, _ = open_filesystem(self.folder)
            for name in self._files:
                remove(filesystem, name)
            self._files = []

    def _postpone(self, error: Exception) -> None:
        if not self._retry_at:
            log.warning(
                "MLflow at %s does not answer (%s); the run goes on, figures are kept and sent later",
                redact(self.uri),
                _line(error),
            )
        self._retry_at = time.monotonic() + RETRY_S
        self._keep()
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self.close)

    def _send(self, entry: Entry) -> None:
        from mlflow.entities import Metric, RunTag

        if entry.kind == "batch":
            metrics, tags = entry.payload
            self.client.log_batch(
                entry.run_id, metrics=[Metric(*metric) for metric in metrics], tags=[RunTag(*tag) for tag in tags]
            )
        elif entry.kind == "params":
            self._send_params(entry.run_id, entry.payload[0])
        elif entry.kind == "inputs":
            self.client.log_inputs(entry.run_id, datasets=[dataset_input(facts) for facts in entry.payload[0]])
        elif entry.kind == "artifact":
            path, folder = entry.payload
            with local_copy(path) as copy:
                self.client.log_artifact(entry.run_id, copy, folder)
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


def dataset_input(facts: dict[str, str]) -> DatasetInput:
    """MLflow's entity of a dataset input, from `name`, `digest`, `context`, `source` and `profile` (JSON texts)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=facts["name"],
        digest=facts["digest"],
        source_type="local",
        source=facts["source"],
        schema=None,
        profile=facts["profile"],
    )
    return DatasetInput(data, tags=[InputTag("mlflow.data.context", facts["context"])])


def _lines(filesystem: fs.FileSystem, path: str) -> Any:
    data = get(filesystem, path)
    return [] if data is None else json.loads(data)


def _line(error: Exception) -> str:
    return redact(one_line(error, 200))
