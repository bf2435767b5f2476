"""A cluster that an autoscaler makes larger while a run waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generation.world import World

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.chaos  # for the time it takes, and a cluster of its own
def test_the_teacher_pool_calls_up_the_nodes_of_its_group(tmp_path: Path) -> None:
    """The first actor fits on no node, which a run on any other cluster is refused for; the second is the backlog's."""
    world = World(tmp_path).build(24)
    command = [sys.executable, "-m", "tests.generation.faults.growing", str(tmp_path)]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["before"] == [0]
    assert answer["after"] == [0, 1, 1]
    assert (answer["books"]["inputs"], answer["books"]["failed"]) == (24, 0)
    assert len(world.rows()) == 24
    assert "the smallest pools need 1 GPUs (student 1 x 0, teacher 1 x 1" in done.stderr
    assert "waiting for nodes to be added" in done.stderr
    assert len({file.name for file in world.log.glob("[0-9]*")}) == 2, "both had a share of the images"
