"""The record of attempts that all workers of one run share.

`AttemptLog` is the record itself. A run on Ray keeps it in an actor, a process of its own that survives any worker, and
its workers and driver speak with it through a `remote.RemoteAttemptLog`, which has the same methods. A run in one
process (`ray.enabled=false`) uses an `AttemptLog` directly.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gmd_ray.errors import GmdError

ADMITTING = ("read", "restore", "project")
"""Stages that take no more rows once a run is asked to end. Rows that have passed them are still scored and written."""

EXCUSES = 3
"""Number of times that an attempt at a row may be taken back. Once is not enough: the next worker may begin with the
other block that it has, and break before it comes to the row in question."""

START = "start "
"""Prefix of a model's name. The result is the stage in which a worker loads that model."""
Columns = dict[str, Any]
"""Columns of a row that a stage has filled in: their names and values."""


@dataclass(frozen=True)
class Attempts:
    """The attempts at one row in one stage that were begun and not finished."""

    times: int = 0
    """All of them, without the excused ones."""
    alone: int = 0
    """Those of `times` in which the row was the only one of its batch, so that nothing else can be to blame."""
    excused: int = 0
    """Attempts that were cut off by a worker that had gone bad before. They are not among `times`."""
    hung: int = 0
    """Those of `times` after which the worker was ended because the batch took too long."""


Evidence = dict[tuple[str, str], Attempts]
"""(stage, id) -> the attempts that are known to have ended together with their worker."""


@dataclass(frozen=True)
class AtWork:
    """An attempt that goes on."""

    stage: str
    id: str
    seconds: float
    """Time since it was begun."""


class AttemptLog:
    """Rows that are at work, the facts of the models, and the first error that ends the run.

    Ray restarts a dead worker and repeats its task for ever. This log stops a row that kills its worker from being
    tried for ever: a row is entered before the work and struck out after it, so a repeated task finds in the log which
    rows it had begun. A row that was given up stays in the log, since its block may be repeated for another row's sake.

    The log dies with the driver. Each attempt that ended with its worker is therefore saved for the next run. Attempts
    that merely went on when the driver died are no evidence against their rows, and are not saved.
    """

    def __init__(
        self,
        facts: dict[str, dict[str, Any]],
        save: Callable[[Evidence], None] = lambda _: None,
        known: Mapping[tuple[str, str], Attempts] | None = None,
    ) -> None:
        """Start a log.

        Args:
            facts: model section -> facts of the model that made the rows already in the store.
            save: is called with all evidence each time that it changes.
            known: evidence of earlier runs.
        """
        self._open: Evidence = dict(known or {})
        self._known: Evidence = dict(known or {})
        self._since: dict[tuple[str, str], float] = {}
        """Start of the attempt that goes on, on the monotonic clock."""
        self._save = save
        self._facts = dict(facts)
        self._error: GmdError | None = None
        self._closed = False
        self._teacher_began = False
        self._counts: Counter[tuple[str, str]] = Counter()
        self._kept: dict[tuple[str, str], Columns] = {}

    def worker(self) -> str:
        """Return a name of the process that asks, which is the same each time that it asks."""
        return "driver"

    def close(self, timeout_s: float = 0.0) -> bool:
        """Admit no row to the `ADMITTING` stages from now on, because the run is to end soon.

        Args:
            timeout_s: how long to wait for the log, where it is an actor.

        Returns:
            True if the teacher has begun any row. If it has not, nothing is worth waiting for.
        """
        self._closed = True
        return self._teacher_began

    def end(self) -> None:
        """End the process of the log, where it has one of its own."""

    def closed(self) -> bool:
        """Return whether `close` was called. A stage asks once for a block, which spares a question for each row."""
        return self._closed

    def history(self, stage: str, ids: Sequence[str]) -> list[Attempts]:
        """Return the unfinished attempts at each of these rows, in the order of `ids`.

        A stage asks before it begins a block. An attempt that goes on by this log's account has then ended with its
        worker, since its block is being repeated.
        """
        self._ended([(stage, key) for key in ids if (stage, key) in self._since])
        return [self._open.get((stage, key), Attempts()) for key in ids]

    def begin(self, stage: str, ids: Sequence[str]) -> list[int] | None:
        """Enter a batch. Return how often each of its rows has now been begun, or None if it is not admitted."""
        if self._closed and stage in ADMITTING:
            return None
        self._teacher_began = self._teacher_began or stage == "project"
        alone = int(len(ids) == 1)
        counts, now = [], time.monotonic()
        for key in ids:
            old = self._open.get((stage, key), Attempts())
            self._open[stage, key] = replace(old, times=old.times + 1, alone=old.alone + alone)
            self._since[stage, key] = now
            counts.append(old.times + 1)
        return counts

    def excuse(self, stage: str, ids: Sequence[str]) -> None:
        """Take back the last attempt at a batch whose worker ends for a reason that may be older than the batch.

        Each row is excused `EXCUSES` times. After that the attempt counts, so that a row that breaks every worker is
        found out all the same.
        """
        alone = int(len(ids) == 1)
        for key in ids:
            if (stage, key) not in self._since:
                continue  # it ended at the last moment
            old = self._open[stage, key]
            if old.excused < EXCUSES:
                del self._since[stage, key]
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
        """Return the attempts that go on, the oldest first, as the run is ended because nothing came of it.

        Attempts older than `seconds` count as hung, for the next run.
        """
        now = time.monotonic()
        ages = sorted(((now - since, key) for key, since in self._since.items()), reverse=True)
        for age, (stage, key) in ages:
            if age >= seconds and not stage.startswith(START):
                self.hung(stage, [key])
        return [AtWork(stage, key, age) for age, (stage, key) in ages]

    def done(self, stage: str, ids: Sequence[str]) -> None:
        """Strike out rows whose work ended, either well or with an exception of their own."""
        cleared = False
        for key in ids:
            self._open.pop((stage, key), None)
            self._since.pop((stage, key), None)
            cleared |= self._known.pop((stage, key), None) is not None
        if cleared:
            self._save(self._known)

    def _ended(self, keys: list[tuple[str, str]]) -> None:
        """Note that these attempts ended with their worker."""
        for key in keys:
            self._since.pop(key, None)
            if not key[0].startswith(START):
                self._known[key] = self._open[key]
        if keys:
            self._save(self._known)

    def keep(self, stage: str, made: Mapping[str, Columns]) -> None:
        """Keep what a worker that is about to end has made of some rows of a block that it does not finish.

        Args:
            stage: the stage of the worker.
            made: id -> the columns that the stage has filled in.
        """
        for key, columns in made.items():
            self._kept[stage, key] = columns

    def take(self, stage: str, ids: Sequence[str]) -> dict[str, Columns]:
        """Return id -> columns for those of these rows that `keep` was called with, and keep them no longer."""
        if not self._kept:
            return {}
        return {key: self._kept.pop((stage, key)) for key in ids if (stage, key) in self._kept}

    def count(self, stage: str, what: str, number: int) -> None:
        """Add to a count that a stage keeps over all its workers (`outputs.CLIPPED`, for example)."""
        self._counts[stage, what] += number

    def counts(self) -> dict[tuple[str, str], int]:
        """Return (stage, what) -> the sum of what its workers have counted in this run."""
        return dict(self._counts)

    def agree(self, section: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts that every worker of a model must share.

        They are those of the store's rows where there are any, else those of the first worker that asks.
        """
        self._facts[section] = {**facts, **self._facts.get(section, {})}
        return self._facts[section]

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return model section -> facts, as far as workers have agreed on them."""
        return self._facts

    def fail(self, error: GmdError) -> None:
        """Leave the reason why the run cannot go on. The first one counts."""
        self._error = self._error or error

    def error(self) -> GmdError | None:
        """Return what `fail` was first called with."""
        return self._error
