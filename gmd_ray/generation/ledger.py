"""What the workers of one run must agree on, kept in a process of its own so that it survives any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gmd_ray.errors import GmdError

ADMITTING = ("read", "restore", "project")
"""Stages that take no more rows once the run is to end; what they have done is scored and written."""

EXCUSES = 3
"""More than one: the next worker may begin with the other block that was at hand, and break before it comes to this."""


@dataclass(frozen=True)
class Begun:
    """How often work on a row was begun and not finished."""

    times: int = 0
    alone: int = 0
    """Of these, how often with no other row in the batch, so that nothing else can be to blame."""
    excused: int = 0
    """How often it was cut off by a worker that had gone bad before; not among `times`."""


class Ledger:
    """Begun and unfinished rows, the facts of the models, and the first error that ends the run.

    Ray restarts a dead worker and repeats its task for ever. What stops a row that kills its worker from being tried
    for ever is this ledger: a row is entered before the work and struck out after it, so a repeated task finds its
    suspects. The ledger dies with the driver; the row is then tried afresh by the next run.
    """

    def __init__(self, facts: dict[str, dict[str, Any]]) -> None:
        """`facts`: stage -> facts of the model that made the rows already in the store."""
        self._open: dict[tuple[str, str], Begun] = {}
        self._facts = dict(facts)
        self._error: GmdError | None = None
        self._closed = False
        self._taught = False

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
        """What earlier attempts left unfinished; in the order of `ids`."""
        return [self._open.get((stage, key), Begun()) for key in ids]

    def begin(self, stage: str, ids: Sequence[str]) -> list[int] | None:
        """Enter a batch; returns how often each of its rows has now been begun, None where it is not admitted."""
        if self._closed and stage in ADMITTING:
            return None
        self._taught = self._taught or stage == "project"
        alone = int(len(ids) == 1)
        counts = []
        for key in ids:
            old = self._open.get((stage, key), Begun())
            self._open[stage, key] = Begun(old.times + 1, old.alone + alone, old.excused)
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
                self._open[stage, key] = Begun(old.times - 1, old.alone - alone, old.excused + 1)

    def done(self, stage: str, ids: Sequence[str]) -> None:
        """Strike out rows whose work ended, well or with an exception of their own."""
        for key in ids:
            self._open.pop((stage, key), None)

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


def open_ledger(facts: dict[str, dict[str, Any]]) -> ray.actor.ActorHandle:
    """The ledger as an actor, owned by the driver and on its node, away from the nodes that come and go.

    Should it die all the same it restarts empty: rows get their attempts again, nothing is lost.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Ledger).options(**options).remote(facts)
