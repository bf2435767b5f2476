"""The checkpoints that a worker group saves because one of its nodes goes, or because the group may soon grow.

Ray Train tells the workers that a node goes, and by when. It ends the group at that deadline and starts it again
elsewhere, from the last checkpoint. So the group saves on notice, in case the node goes early, trains on, and saves
again so late that one more look would not leave the time to. After that it waits for its end: each step would be lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train import PreemptionInfo

from gmd_ray.training.worker.parallel import from_rank_zero

LOOK_S = 1.0
"""Seconds between two looks, each of which makes all workers wait for one another. After a notice they look after each
step."""

LOOK_STEPS = 32
"""Steps between two looks at most: the next steps may be slower than the last."""

DEADLINE_S = 120.0
"""Seconds until a node goes of which Ray does not know when; Ray Train assumes the same."""

SAVES = 2.0
"""Times that the slowest save so far must fit before the deadline: storage is slower when a node is going."""

MARGIN_S = 3.0
"""Seconds that the last checkpoint is ahead of the deadline: Ray Train registers it, and clocks differ."""

OVERDUE_S = 60.0
"""Seconds after the deadline at which a group that nobody ended trains on."""


@dataclass(frozen=True)
class SaveDecision:
    """The same order to all workers after a step: to save, to wait, and when to look again."""

    save: bool = False
    """Save a checkpoint."""
    wait_s: float = 0.0
    """Seconds to wait for the end of the group after the checkpoint; 0 to train on."""
    leaving: tuple[int, ...] = ()
    """Ranks on the nodes that go; empty unless a checkpoint is saved for that reason."""
    left_s: float = 0.0
    """Seconds until the first of these nodes goes."""
    next_look: int = 0
    """The step after which the workers look again."""

    def figures(self) -> dict[str, Any]:
        """The figures that are reported with the checkpoint: `leaving`, `left_s` and `waits` (True for the last)."""
        return {"leaving": list(self.leaving), "left_s": round(self.left_s, 1), "waits": self.wait_s > 0}


class SavePlan:
    """The decision of rank 0, from its clock and what the last steps and saves took.

    Args:
        step: the step that training starts at.
        save_every_s: save at least this often; None saves for nodes that go alone.
        clock: returns seconds since the epoch.
    """

    def __init__(self, step: int, save_every_s: float | None, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._save_every_s = clock, save_every_s
        self._step, self._looked = step, clock()
        self._saved, self._save_s = self._looked, 0.0  # time of the last save; duration of the slowest
        self._saving_s = 0.0  # spent since the last look
        self._step_s = 0.0
        self._nodes: set[str] = set()
        self._noticed: float | None = None
        self._waited_for: float | None = None

    def decide(self, step: int, info: PreemptionInfo | None) -> SaveDecision:
        """Decide what to do after a step.

        Args:
            step: the number of steps that are done.
            info: which nodes go; None if none does.
        """
        now = self._clock()
        latest_s = max(now - self._looked - self._saving_s, 1e-6) / max(step - self._step, 1)
        step_s = max(latest_s, self._step_s)  # a step alone may be a short one
        self._step, self._step_s, self._looked, self._saving_s = step, latest_s, now, 0.0
        if info is None:
            due = self._save_every_s is not None and now - self._saved >= self._save_every_s
            return SaveDecision(save=due, next_look=step + min(max(1, int(LOOK_S / step_s)), LOOK_STEPS))
        new = not self._nodes.issuperset(info.preempted_node_to_ranks)
        self._nodes.update(info.preempted_node_to_ranks)
        self._noticed = now if self._noticed is None else self._noticed
        deadline = self._noticed + DEADLINE_S if info.deadline_ms is None else info.deadline_ms / 1000
        left = deadline - now
        late = left < SAVES * self._save_s + step_s + MARGIN_S and deadline != self._waited_for
        if late:
            self._waited_for = deadline
        if not new and not late:
            return SaveDecision(next_look=step + 1)
        wait_s = max(left, 0.0) + OVERDUE_S if late else 0.0
        return SaveDecision(True, wait_s, tuple(info.preempted_ranks), left, step + 1)

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint was saved just now, and how long that took."""
        self._save_s = max(self._save_s, seconds)
        self._saving_s += seconds
        self._saved = self._clock()


class PreemptionWatch:
    """The same decision for all workers, after every step."""

    def __init__(self, plan: SavePlan) -> None:
        self._plan = plan
        self._next_look = 0

    def look(self, step: int) -> SaveDecision:
        """Decide what to do after a step. Every worker must call this after the same steps."""
        if step < self._next_look:
            return SaveDecision()
        # Ray Train answers all workers alike; their clocks differ.
        decision = from_rank_zero(self._plan.decide(step, ray.train.get_preemption_info()))
        self._next_look = decision.next_look
        return decision

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint was saved just now, and how long that took."""
        self._plan.saved(seconds)
