"""When a group of workers saves because a node goes: the decision, with a clock that the test moves, and the loop."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import PreemptionInfo, ScalingConfig
from ray.train.torch import TorchTrainer

from gmd_ray.training.spec import make_spec
from gmd_ray.training.worker import preemption
from gmd_ray.training.worker.loop import train
from gmd_ray.training.worker.preemption import PreemptionWatch, SaveDecision, SavePlan
from tests.training.toys import make_config


@dataclass
class Drive:
    """A group that trains as the plan says, up to `until`, and is told of nodes at times of its own clock."""

    step_s: float
    save_s: float
    notices: dict[float, PreemptionInfo] = field(default_factory=dict)
    save_every_s: float | None = None
    checkpoint_every: int = 10**9
    report_s: float = 0.0
    """Seconds that a step takes after the look, unless it is saved."""
    now: float = 1000.0
    looks: int = 0
    saves: list[tuple[int, float]] = field(default_factory=list)
    """Step of each checkpoint, and the time at which it was whole."""
    waits: list[float] = field(default_factory=list)
    step: int = 0

    def clock(self) -> float:
        return self.now

    def run(self, until: float) -> Drive:
        plan = SavePlan(0, self.save_every_s, self.clock)
        next_look = 0
        while self.now < until:
            self.now += self.step_s
            self.step += 1
            decision = SaveDecision()
            if self.step >= next_look:
                self.looks += 1
                info = [info for at, info in self.notices.items() if at <= self.now]
                decision = plan.decide(self.step, info[-1] if info else None)
                next_look = decision.next_look
            if decision.save or self.step % self.checkpoint_every == 0:
                self.now += self.save_s
                self.saves.append((self.step, self.now))
                plan.saved(self.save_s)
            else:
                self.now += self.report_s
            if decision.wait_s:
                self.waits.append(self.now)
                self.now += decision.wait_s
        return self


def going(deadline_s: float | None, *ranks: int, node: str = "a") -> PreemptionInfo:
    return PreemptionInfo(None if deadline_s is None else int(deadline_s * 1000), {node: list(ranks)})


@pytest.mark.parametrize("step_s", [0.02, 0.3, 1.5, 4.0])
@pytest.mark.parametrize("save_s", [0.1, 2.0, 8.0])
def test_two_saves_the_last_of_them_whole_before_the_deadline_and_no_step_after_it(
    step_s: float, save_s: float
) -> None:
    drive = Drive(step_s, save_s, {1020.0: going(1110.0, 1)}).run(until=1110.0)
    (_, noticed), (last_step, whole) = drive.saves
    assert noticed <= 1020.0 + preemption.LOOK_S + 2 * step_s + save_s
    assert 1110.0 - 2 * (save_s + preemption.LOOK_S + step_s) - preemption.MARGIN_S <= whole <= 1110.0 - 1.0
    assert drive.waits == [whole]
    assert drive.step == last_step  # nothing is redone


def test_a_short_step_after_a_save_says_nothing_about_the_next_ones() -> None:
    drive = Drive(0.02, 0.3, {1020.0: going(1030.0, 1)}, report_s=0.3).run(until=1030.0)
    _, (last_step, whole) = drive.saves
    assert whole <= 1030.0 - 1.0
    assert drive.step == last_step


def test_looks_are_about_a_second_apart_and_never_closer_than_a_step() -> None:
    assert 95 <= Drive(0.05, 0.0).run(until=1100.0).looks <= 105
    saving = Drive(0.05, 2.5, checkpoint_every=99).run(until=1100.0)  # now and then just before a look
    assert 60 <= saving.looks <= 75  # in 67 s of training
    fast = Drive(0.001, 0.0).run(until=1010.0)
    assert fast.step / preemption.LOOK_STEPS == pytest.approx(fast.looks, rel=0.01)
    slow = Drive(3.0, 0.0).run(until=1100.0)
    assert slow.looks == slow.step
    assert slow.saves == []


def test_a_notice_too_short_for_two_saves_is_answered_with_one_and_a_wait() -> None:
    drive = Drive(0.5, 1.0, {1020.0: going(1023.0, 0)}).run(until=1023.0)
    [(step, whole)] = drive.saves
    assert drive.waits == [whole]
    assert drive.step == step


def test_the_first_save_shows_how_long_one_takes() -> None:
    # 30 s are left after the notice. A save turns out to take 9 s: there is no time for more than one other.
    drive = Drive(0.5, 9.0, {1020.0: going(1050.0, 0)}).run(until=1050.0)
    (first, _), (second, whole) = drive.saves
    assert second > first
    assert whole <= 1050.0
    assert drive.step == second


def test_without_a_deadline_the_one_that_ray_train_assumes_holds() -> None:
    drive = Drive(0.5, 0.2, {1020.0: going(None, 0)}).run(until=1140.0)
    _, (_, whole) = drive.saves
    assert 1020.0 + 120.0 - 10.0 < whole < 1020.0 + 120.0


def test_a_second_node_is_saved_for_too_and_its_earlier_deadline_counts() -> None:
    both = PreemptionInfo(1_060_000, {"a": [0], "b": [1]})
    drive = Drive(0.5, 0.2, {1020.0: going(1110.0, 0), 1040.0: both}).run(until=1060.0)
    first, second, third = [whole - 1000.0 for _, whole in drive.saves]
    assert 20.0 <= first <= 22.0
    assert 40.0 <= second <= 42.0
    assert 50.0 < third < 60.0


def test_a_group_that_nobody_ends_trains_on_after_the_deadline() -> None:
    drive = Drive(0.5, 0.2, {1020.0: going(1060.0, 0)}).run(until=1200.0)
    assert len(drive.waits) == 1
    assert drive.step > drive.saves[-1][0] + 50


def test_a_group_that_may_grow_saves_at_intervals() -> None:
    drive = Drive(0.5, 1.0, save_every_s=60.0).run(until=1310.0)
    times = [whole for _, whole in drive.saves]
    assert len(times) == 5
    assert all(60.0 <= b - a <= 63.0 for a, b in itertools.pairwise(times))


def test_workers_ask_ray_train_only_where_they_look(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: asked.append(1))

    class EveryTen:
        def decide(self, step: int, info: PreemptionInfo | None) -> SaveDecision:
            return SaveDecision(save=True, next_look=step + 10)

    watch = PreemptionWatch(EveryTen())  # type: ignore[arg-type]
    assert [step for step in range(1, 31) if watch.look(step).save] == [1, 11, 21]
    assert len(asked) == 3


def train_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[list[Any], list[float]]:
    """Train in this process; return what the loop reported, as (figures, name of the checkpoint), and its waits."""
    reports: list[Any] = []
    waits: list[float] = []

    def report(figures: dict[str, Any], checkpoint: Any = None, checkpoint_dir_name: str | None = None) -> None:
        reports.append((figures, checkpoint_dir_name))

    monkeypatch.setattr("ray.train.report", report)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr("gmd_ray.training.worker.loop.time", clock)
    spec = make_spec(make_config(tmp_path, checkpoint_every=100, log_every=100), "adapted", None)
    loop = TorchTrainer(train, train_loop_config={"spec": spec} | config, scaling_config=ScalingConfig(num_workers=0))
    assert loop.fit().return_value is None
    return reports, waits


def test_the_loop_saves_and_waits_as_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = {
        3: SaveDecision(True, 0.0, (1, 2), 60.04),
        5: SaveDecision(True, 64.0, (1, 2), 4.0),
        8: SaveDecision(True),
    }
    monkeypatch.setattr(PreemptionWatch, "look", lambda self, step: decisions.get(step, SaveDecision()))
    reports, waits = train_here(tmp_path, monkeypatch, resize_s=60.0)
    assert [name for _, name in reports] == ["step_00000003", "step_00000005", "step_00000008", "step_00000012"]
    assert reports[0][0] == {"step": 3, "leaving": [1, 2], "left_s": 60.0, "waits": False}
    assert reports[1][0] == {"step": 5, "leaving": [1, 2], "left_s": 4.0, "waits": True}
    assert reports[2][0] == {"step": 8}
    assert waits == [64.0]


def test_the_loop_asks_for_nodes_that_go_only_where_nodes_may_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: pytest.fail("asked"))
    reports, _ = train_here(tmp_path, monkeypatch)
    assert [name for _, name in reports] == ["step_00000012"]
