"""An attempt log that workers on all nodes share: an `AttemptLog` in an actor, and how they speak with it.

This module does not import Ray before an actor is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gmd_ray.errors import GmdError
from gmd_ray.generation.attempts.log import AttemptLog, Attempts, AtWork, Columns, Evidence

if TYPE_CHECKING:
    import ray

ANSWER_S, LEAVING_S = 30.0, 10.0
"""Seconds that the driver of a run that ends early, or a worker that is about to end, waits for the actor."""


class RemoteAttemptLog:
    """An `AttemptLog` that lives in an actor; each method does what the one of the same name does there.

    Instances pickle into workers. Methods wait for the answer, except `done` and `count`: a stage goes on
    without it, and Ray keeps the order of the calls of one process.
    """

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        self._actor = actor

    def worker(self) -> str:
        import ray

        return ray.get_runtime_context().get_actor_id() or "task"

    def close(self, timeout_s: float = 0.0) -> bool:
        """See `AttemptLog.close`. True if the actor does not answer: what is at work may get through all the same."""
        return bool(_answer_or(True, self._actor.close.remote(), timeout_s))

    def closed(self) -> bool:
        return bool(_answer(self._actor.closed.remote()))

    def history(self, stage: str, ids: Sequence[str]) -> list[Attempts]:
        return list(_answer(self._actor.history.remote(stage, ids)))

    def begin(self, stage: str, ids: Sequence[str]) -> list[int] | None:
        counts: list[int] | None = _answer(self._actor.begin.remote(stage, ids))
        return counts

    def excuse(self, stage: str, ids: Sequence[str]) -> None:
        _answer_or(None, self._actor.excuse.remote(stage, ids), LEAVING_S)  # a node may lose its network as it goes

    def hung(self, stage: str, ids: Sequence[str]) -> None:
        _answer_or(None, self._actor.hung.remote(stage, ids), LEAVING_S)

    def stalled(self, seconds: float) -> list[AtWork]:
        return list(_answer_or([], self._actor.stalled.remote(seconds), ANSWER_S))

    def done(self, stage: str, ids: Sequence[str]) -> None:
        self._actor.done.remote(stage, ids)

    def keep(self, stage: str, made: Mapping[str, Columns]) -> None:
        _answer_or(None, self._actor.keep.remote(stage, made), ANSWER_S)  # images, of a whole block perhaps

    def take(self, stage: str, ids: Sequence[str]) -> dict[str, Columns]:
        return dict(_answer(self._actor.take.remote(stage, ids)))

    def count(self, stage: str, what: str, number: int) -> None:
        self._actor.count.remote(stage, what, number)

    def counts(self) -> dict[tuple[str, str], int]:
        return dict(_answer(self._actor.counts.remote()))

    def agree(self, section: str, facts: dict[str, Any]) -> dict[str, Any]:
        return dict(_answer(self._actor.agree.remote(section, facts)))

    def facts(self) -> dict[str, dict[str, Any]]:
        return dict(_answer(self._actor.facts.remote()))

    def fail(self, error: GmdError) -> None:
        _answer(self._actor.fail.remote(error))

    def error(self) -> GmdError | None:
        """See `AttemptLog.error`. None if the actor does not answer."""
        found: GmdError | None = _answer_or(None, self._actor.error.remote(), ANSWER_S)
        return found

    def end(self) -> None:
        """End the actor and its process, which else wait for Python to collect the last handle of it."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.kill(self._actor)


AnyAttemptLog = AttemptLog | RemoteAttemptLog


def start_attempt_log(
    facts: dict[str, dict[str, Any]],
    save: Callable[[Evidence], None] = lambda _: None,
    known: Mapping[tuple[str, str], Attempts] | None = None,
) -> RemoteAttemptLog:
    """Start an actor that holds an `AttemptLog` with these arguments.

    The driver owns it, and it runs on the driver's node, away from nodes that come and go. If it dies all the same, it
    restarts with the same arguments: rows get their attempts again, and nothing is lost.
    """
    import ray

    # By the label of a node: with a soft node affinity Ray was seen to place it on another node, which was drained.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "label_selector": here}
    return RemoteAttemptLog(ray.remote(AttemptLog).options(**options).remote(facts, save, known))


def _answer(reference: ray.ObjectRef) -> Any:
    import ray

    return ray.get(reference)


def _answer_or(default: Any, reference: ray.ObjectRef, timeout_s: float) -> Any:
    """Return the answer of the actor, or `default` if it is dead or does not answer in time."""
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference, timeout=timeout_s)
    except RayError:
        return default
