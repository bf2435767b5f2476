"""What the workers of one run must agree on, kept in a process of its own so that it survives any of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gmd_ray.errors import GmdError

ADMITTING = ("read", "restore", "project")
"""Stages that take no more rows once the run is to end; what they have done is scored and written."""

EXCUSES = 3
"""More than one: the next worker may begin with the other block that was at hand, and break before it comes to this."""

START = "start "
"""Before a model's name: the stage in which a worker loads it."""


@dataclass(frozen=True)
class Begun:
    """How often work on a row was begun and not finished."""

    times: int = 0
    alone: int = 0
    """Of these, how often with no other row in the batch, so that nothing else can be to blame."""
    excused: int = 0
    """How often it was cut off by a worker that had gone bad before; not among `times`."""
    hung: int = 0
    """Of `times`, how often the worker was ended because the batch took too long."""


Evidence = dict[tuple[str, str], Begun]
"""(stage, id) -> the attempts of which it is known that they ended with the worker."""


@dataclass(frozen=True)
class AtWork:
    """An attempt that goes on."""

    stage: str
    id: str
    seconds: float


class Ledger:
    """Begun and unfinished rows, the facts of the models, and the first error that ends the run.

    Ray restarts a dead worker and repeats its task for ever. What stops a row that kills its worker from being tried
    for ever is this ledger: a row is entered before the work and struck out after it, so a repeated task finds its
    suspects. A row that was given up stays in it: its block may be repeated for another row's sake.

    The ledger dies with the driver. `keep` is told of each attempt that ended with its worker, so that the next run
    knows of it; attempts that merely went on when the driver died are no evidence against their rows.
    """

    def __init__(
        self,
        facts: dict[str, dict[str, Any]],
        keep: Callable[[Evidence], None] = lambda _: None,
        known: Mapping[tuple[str, str], Begun] | None = None,
    ) -> None:
        """`facts`: stage -> facts of the model that made the rows already in the store; `known`: from earlier runs."""
        self._open: Evidence = dict(known or {})
        self._known: Evidence = dict(known or {})
        self._since: dict[tuple[str, str], float] = {}
        """When the attempt that goes on was begun."""
        self._keep = keep
        self._facts = dict(facts)
        self._error: GmdError | None = None
        self._closed = False
        self._taught = False
        self._clipped: Counter[str] = Counter()

    def close(self) -> bool:
        """Admit no row to `ADMITTING` stages from now on: the run is to end soon.

        Returns:
            whether the teacher has begun any row; where not, there is nothing to wait for but models that load.
        """
        self._closed = True
        return self._taught

    def closed(self) -> bool:
        """Whether rows are still admitted: asked once for a block, it spares a question for each of its rows."""
        return self._closed

    def history(self, stage: str, ids: Sequence[str]) -> list[Begun]:
        """What earlier attempts left unfinished, in the order of `ids`; to be asked before a block is begun.

        An attempt that goes on by this ledger's account has ended with its worker: its block is being repeated.
        """
        self._ended([(stage, key) for key in ids if (stage, key) in self._since])
        return [self._open.get((stage, key), Begun()) for key in ids]

    def begin(self, stage: str, ids: Sequence[str]) -> list[int] | None:
        """Enter a batch; returns how often each of its rows has now been begun, None where it is not admitted."""
        if self._closed and stage in ADMITTING:
            return None
        self._taught = self._taught or stage == "project"
        alone = int(len(ids) == 1)
        counts, now = [], time.monotonic()
        for key in ids:
            old = self._open.get((stage, key), Begun())
            self._open[stage, key] = replace(old, times=old.times + 1, alone=old.alone + alone)
            self._since[stage, key] = now
            counts.append(old.times + 1)
        return counts

    def excuse(self, stage: str, ids: Sequence[str]) -> None:
        """Take back the last attempt of a batch whose worker leaves for a reason that may be older than the batch.

        `EXCUSES` times for each row, then it counts, so that a row that breaks every worker is found out all the same.
        """
        alone = int(len(ids) == 1)
        for key in ids:
            old = self._open[stage, key]
            if old.excused < EXCUSES:
                self._since.pop((stage, key), None)
                self._open[stage, key] = replace(
                    old, times=old.times - 1, alone=old.alone - alone, excused=old.excused + 1
                )

    def hung(self, stage: str, ids: Sequence[str]) -> None:
        """Note that the attempt at a batch takes too long, and that its worker is about to be ended for it."""
        keys = [(stage, key) for key in ids if (stage, key) in self._since]  # the others ended at the last moment
        for key in keys:
            self._open[key] = replace(self._open[key], hung=self._open[key].hung + 1)
        self._ended(keys)

    def stalled(self, seconds: float) -> list[AtWork]:
        """What goes on, the oldest first, as the run is ended for a stall.

        Attempts older than `seconds` count as hung, for the next run.
        """
        now = time.monotonic()
        ages = sorted(((now - since, key) for key, since in self._since.items()), reverse=True)
        for age, (stage, key) in ages:
            if age >= seconds and not stage.startswith(START):
                self.hung(stage, [key])
        return [AtWork(stage, key, age) for age, (stage, key) in ages]

    def done(self, stage: str, ids: Sequence[str]) -> None:
        """Strike out rows whose work ended, well or with an exception of their own."""
        cleared = False
        for key in ids:
            self._open.pop((stage, key), None)
            self._since.pop((stage, key), None)
            cleared |= self._known.pop((stage, key), None) is not None
        if cleared:
            self._keep(self._known)

    def _ended(self, keys: list[tuple[str, str]]) -> None:
        """These attempts ended with their worker."""
        for key in keys:
            self._since.pop(key, None)
            if not key[0].startswith(START):
                self._known[key] = self._open[key]
        if keys:
            self._keep(self._known)

    def count_clipped(self, stage: str, images: int) -> None:
        """Note that a model left the range of an image, `outputs.STRAY`."""
        self._clipped[stage] += images

    def clipped(self) -> dict[str, int]:
        """Stage -> images whose values had to be clipped."""
        return dict(self._clipped)

    def agree(self, stage: str, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts that every worker of a stage must share: the store's, else those of the first worker to speak."""
        self._facts[stage] = {**facts, **self._facts.get(stage, {})}
        return self._facts[stage]

    def facts(self) -> dict[str, dict[str, Any]]:
        return self._facts

    def fail(self, error: GmdError) -> None:
        """Leave the reason why the run cannot go on; the first one counts."""
        self._error = self._error or error

    def error(self) -> GmdError | None:
        return self._error


def open_ledger(
    facts: dict[str, dict[str, Any]],
    keep: Callable[[Evidence], None] = lambda _: None,
    known: Mapping[tuple[str, str], Begun] | None = None,
) -> ray.actor.ActorHandle:
    """The ledger as an actor, owned by the driver and on its node, away from the nodes that come and go.

    Should it die all the same it restarts with what it was given: rows get their attempts again, nothing is lost.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Ledger).options(**options).remote(facts, keep, known)
