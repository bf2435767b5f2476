"""The lock that keeps a pair store to one driver at a time."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType

from pyarrow import fs

from gmd_ray.errors import DataError, GmdError
from gmd_ray.storage import get, put, remove

log = logging.getLogger("gmd_ray.generation")

BEAT_S = 10.0
"""Seconds between heartbeats."""
STALE_S = 60.0
"""Seconds without a heartbeat after which a lock is stale."""
SETTLE_S = 0.3
"""Seconds between writing a lock and reading it back.

Object stores cannot create a file exclusively: of two drivers that start together, the later write stands, and the
other driver sees that when it reads the lock back."""

_OURS: set[str] = set()
"""Tokens of the locks that this process holds."""


class StoreLockedError(GmdError):
    """Another driver is at work on the store."""


class StoreLostError(GmdError):
    """Another driver took the store over, or the driver of this worker has ended."""


class StoreLock:
    """A lock file with a heartbeat, held for the length of a `with` block.

    A lock is stale, and is taken over, when its process is dead on this host or its heartbeat is `STALE_S` old. The
    clocks of two hosts may differ by more than that, so a lock of another host or container is watched for one and a
    half heartbeats before it is taken over. A worker checks the token (`held`) before it writes a part of the store, so
    that late writes of a driver that was killed or overtaken are dropped.
    """

    def __init__(self, filesystem: fs.FileSystem, store: str, name: str) -> None:
        """Make a lock; it is taken when the `with` block is entered.

        Args:
            store: path of the pair store on `filesystem`.
            name: its URL, for messages.
        """
        self.token = uuid.uuid4().hex
        self.lost = False
        self._filesystem, self._path, self._name = filesystem, lock_path(store), name
        self._since = f"{time.time():.3f}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="gmd-store-lock", daemon=True)

    def __enter__(self) -> StoreLock:
        """Take the lock; raises StoreLockedError, which names the holder, where another driver is at work."""
        holder = _read(self._filesystem, self._path)
        if holder is not None:
            here = holder["host"] == socket.gethostname()
            if not here or _ours(holder):  # a container that restarted may have left a young lock
                self._refuse_unless_stale(holder)
            if not _ours(holder):
                time.sleep(1.5 * BEAT_S)
                now = _read(self._filesystem, self._path)
                if now is not None and now["beat"] != holder["beat"]:
                    raise StoreLockedError(
                        f"{self._name}: process {now['pid']} on {now['host']} is at work here, its clock is "
                        f"{time.time() - float(now['beat']):.0f} s behind this one's; wait for it, stop it, or give "
                        f"another out="
                    )
            log.info("taking over the lock that process %s on %s left behind", holder["pid"], holder["host"])
        _OURS.add(self.token)
        self._write()
        time.sleep(SETTLE_S)
        holder = _read(self._filesystem, self._path)
        if holder is None or holder["token"] != self.token:
            raise StoreLockedError(f"{self._name}: another driver took this store at the same moment; let it finish")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        _OURS.discard(self.token)
        if held(self._filesystem, self._path, self.token):
            remove(self._filesystem, self._path)

    def check(self) -> None:
        """Raise StoreLostError once the heartbeat has found another driver's lock."""
        if self.lost:
            raise StoreLostError(f"{self._name}: another driver took this store over while this one was stalled")

    def _refuse_unless_stale(self, holder: dict[str, str]) -> None:
        age = time.time() - float(holder["beat"])
        if not stale(holder):
            raise StoreLockedError(
                f"{self._name}: process {holder['pid']} on {holder['host']} is at work here (seen {age:.0f} s ago); "
                f"wait for it, stop it, or give another out="
            )

    def _write(self) -> None:
        beat = {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "pids": _pid_namespace(),
            "since": self._since,
            "beat": f"{time.time():.3f}",
        }
        put(self._filesystem, self._path, json.dumps(beat).encode())

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if not held(self._filesystem, self._path, self.token):
                    self.lost = True
                    return
                self._write()
            except OSError as error:
                log.warning("%s: heartbeat not written: %s", self._name, error)


def lock_path(store: str) -> str:
    return f"{store}/lock.json"


def held(filesystem: fs.FileSystem, path: str, token: str) -> bool:
    """Tell whether the lock file at `path` carries this token."""
    holder = _read(filesystem, path)
    return holder is not None and holder["token"] == token


def stale(holder: dict[str, str]) -> bool:
    """Tell whether the driver that wrote a lock is gone."""
    here, pid = _ours(holder), int(holder["pid"])
    # After a container restarts, this process may have the same number as the one that wrote the lock.
    dead = here and (not _alive(pid) or (pid == os.getpid() and holder["token"] not in _OURS))
    return dead or time.time() - float(holder["beat"]) >= STALE_S


def holder_of(filesystem: fs.FileSystem, store: str) -> dict[str, str] | None:
    """Read who holds the lock of a store: `host`, `pid`, and `since` and `beat` in seconds since the epoch.

    None where nobody holds it, or the lock is stale.
    """
    holder = _read(filesystem, lock_path(store))
    return None if holder is None or stale(holder) else holder


def _read(filesystem: fs.FileSystem, path: str) -> dict[str, str] | None:
    data = get(filesystem, path)
    if data is None:
        return None
    try:
        holder = json.loads(data)
        if not {"token", "pid", "host", "beat"} <= holder.keys():
            raise ValueError("keys are missing")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a lock of this program ({error}); remove it when no driver is at work") from error
    return holder


def _ours(holder: dict[str, str]) -> bool:
    """Tell whether a holder's process number counts in this process's own numbering: same host and pid namespace."""
    return holder["host"] == socket.gethostname() and holder.get("pids", _pid_namespace()) == _pid_namespace()


def _pid_namespace() -> str:
    """Name the namespace of process numbers; empty where the system does not tell it.

    Two containers of one host may share its name but not its process numbers.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
