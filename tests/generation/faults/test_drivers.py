"""Drivers that are killed, stopped, doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from gmd_ray.errors import ExitCode
from gmd_ray.generation import generate
from tests import PATIENCE_S
from tests.generation.world import World, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def driver(world: World) -> Iterator[subprocess.Popen[str]]:
    """Another driver on the session's cluster: its workers outlive it by a moment, as on a real one."""
    command = [sys.executable, "-m", "tests.generation.faults.drive", str(world.root)]
    command.append(ray.get_runtime_context().gcs_address)
    env = {**os.environ, "RAY_AUTH_MODE": "token"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def parts(world: World) -> int:
    return len(list(Path(world.store, "rows").glob("part-*")))


def wait_until_held(world: World, process: subprocess.Popen[str], stored: int = 0, held: int = 0) -> None:
    """Wait for a driver's first block, after `stored` others, and until its teacher waits in the next."""
    wait_for(lambda: (parts(world) > stored and world.held() > held) or process.poll() is not None, PATIENCE_S)
    assert process.poll() is None, process.communicate()[0]


def test_doubled_then_killed_then_stopped_then_finished(fresh_on_ray: World) -> None:
    lock = Path(fresh_on_ray.store, "lock.json")
    with driver(fresh_on_ray) as first:
        wait_for(lambda: lock.exists() or first.poll() is not None, PATIENCE_S)
        with driver(fresh_on_ray) as double:
            output = double.communicate(timeout=PATIENCE_S)[0]
        assert double.returncode == 1
        assert f"StoreLockedError: {fresh_on_ray.store}: process {first.pid} on " in output
        assert "Traceback" not in output
        wait_until_held(fresh_on_ray, first)
        killed_at = set(fresh_on_ray.rows())
        time.sleep(12)  # until it has reserved the cluster, which must not stay its own for long
        first.kill()
    assert lock.exists()  # left behind; its process is dead, so it is taken over
    assert len(killed_at) == 6
    made = Counter({key: fresh_on_ray.projected()[key] for key in killed_at})

    before, stored, held = fresh_on_ray.projected(), parts(fresh_on_ray), fresh_on_ray.held()
    with driver(fresh_on_ray) as second:
        wait_until_held(fresh_on_ray, second, stored, held)
        begun = fresh_on_ray.projected()
        second.send_signal(signal.SIGTERM)
        assert any("SIGTERM: the workers are told to begin no further image" in line for line in second.stdout or ())
        fresh_on_ray.release()
        assert second.wait(PATIENCE_S) == ExitCode.INTERRUPTED
        assert not lock.exists()
        assert not Path(fresh_on_ray.store, "manifest.json").exists()

    # Stopped, not killed: whatever the teacher had begun is in the store, and it began nothing more.
    done, seen = set(fresh_on_ray.rows()), fresh_on_ray.projected()
    assert seen == begun
    assert done == killed_at | set(begun - before)
    assert 12 < len(done) < 18, "in the middle of a block"
    assert all(seen[key] == made[key] for key in killed_at), "what was in the store at the kill is not done again"
    fresh_on_ray.cfg.ray.enabled = False
    books = generate(fresh_on_ray.cfg, models=fresh_on_ray.models())
    assert (books.inputs, books.ok, books.resumed) == (24, 24, len(done))
    assert sorted(fresh_on_ray.rows()) == fresh_on_ray.ids()
    again = fresh_on_ray.projected() - seen
    assert set(again) == set(fresh_on_ray.ids()) - done
