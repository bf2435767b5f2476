"""The two ways to reach the attempt log of a run, and what the workers that only read and write must import for it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from gmd_ray.errors import DataError
from gmd_ray.generation.attempts.log import AttemptLog, Attempts, AtWork
from gmd_ray.generation.attempts.remote import RemoteAttemptLog


class Actor:
    """Stands in for the handle of an actor: each method's `remote` works at once in this process."""

    def __init__(self, log: AttemptLog) -> None:
        self._log = log

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._log, name))


@pytest.fixture
def local() -> AttemptLog:
    return AttemptLog({"teacher": {"fingerprint": "t"}})


@pytest.fixture
def remote(local: AttemptLog, monkeypatch: pytest.MonkeyPatch) -> RemoteAttemptLog:
    monkeypatch.setattr("ray.get", lambda answer, timeout=None: answer)
    return RemoteAttemptLog(Actor(local))  # type: ignore[arg-type]


def test_both_have_the_same_methods() -> None:
    methods = {name for name in vars(AttemptLog) if not name.startswith("_")}
    assert methods == {name for name in vars(RemoteAttemptLog) if not name.startswith("_")}


def test_what_is_said_through_one_is_heard_by_the_other(local: AttemptLog, remote: RemoteAttemptLog) -> None:
    assert remote.begin("project", ["a", "b"]) == [1, 1]
    assert remote.begin("project", ["c"]) == [1]
    remote.excuse("project", ["c"])
    remote.hung("project", ["b"])
    remote.done("project", ["a"])
    expected = [Attempts(), Attempts(1, 0, 0, 1), Attempts(0, 0, 1)]
    assert remote.history("project", ["a", "b", "c"]) == local.history("project", ["a", "b", "c"]) == expected
    remote.excuse("project", ["a", "never begun"])
    assert remote.history("project", ["a", "never begun"]) == [Attempts(), Attempts()], "there is nothing to take back"
    remote.keep("project", {"a": {"score": 1.0}, "b": {"score": 2.0}})
    assert remote.take("restore", ["a"]) == {}
    assert remote.take("project", ["a", "c"]) == {"a": {"score": 1.0}}
    assert local.take("project", ["a", "b"]) == {"b": {"score": 2.0}}, "what was taken is kept no longer"
    remote.count("restore", "clipped", 3)
    assert remote.counts() == local.counts() == {("restore", "clipped"): 3}
    assert remote.agree("scorer", {"fingerprint": "s"}) == {"fingerprint": "s"}
    assert remote.facts() == local.facts() == {"teacher": {"fingerprint": "t"}, "scorer": {"fingerprint": "s"}}
    local.begin("score", ["z"])
    [going] = remote.stalled(9.0)
    assert isinstance(going, AtWork)
    assert (going.stage, going.id) == ("score", "z")
    assert remote.error() is None
    remote.fail(DataError("first"))
    assert remote.error() is local.error()
    assert not remote.closed()
    assert remote.close(1.0), "the teacher has begun"
    assert remote.closed()
    assert remote.begin("read", ["d"]) is None


@pytest.mark.parametrize("error", [GetTimeoutError("late"), ActorUnavailableError("gone", None)])
def test_an_actor_that_does_not_answer_holds_up_no_end(
    error: Exception, remote: RemoteAttemptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Any] = []

    def fails(answer: object, timeout: float | None = None) -> object:
        waited.append(timeout)
        raise error

    remote.begin("project", ["a"])
    monkeypatch.setattr("ray.get", fails)
    assert remote.close(7.0) is True, "what is at work may get through all the same"
    assert remote.error() is None
    assert remote.stalled(1.0) == []
    remote.hung("project", ["a"])
    remote.excuse("project", ["a"])
    remote.keep("project", {"a": {"score": 1.0}})
    assert waited == [7.0, 30.0, 30.0, 10.0, 10.0, 30.0]


def test_workers_that_read_and_write_import_neither_torch_nor_the_models() -> None:
    code = "import sys, gmd_ray.generation.io_stages; print(sorted({'torch', 'ray', 'spandrel'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
