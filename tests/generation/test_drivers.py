"""Drivers that are killed, stopped, doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from gmd_ray.generation import generate
from tests.generation.world import World, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def driver(world: World) -> Iterator[subprocess.Popen[str]]:
    """Another driver on the session's cluster: its workers outlive it by a moment, as on a real one."""
    command = [sys.executable, "-m", "tests.generation.drive", str(world.root)]
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


def test_killed_then_stopped_then_finished(fresh: World) -> None:
    lock = Path(fresh.store, "lock.json")
    with driver(fresh) as first:
        wait_for(lambda: parts(fresh) >= 1 or first.poll() is not None, 400)  # a ceiling for crowded machines
        assert first.poll() is None, first.communicate()[0]
        killed_at = set(fresh.rows())
        first.kill()
    assert lock.exists()  # left behind; its process is dead, so it is taken over

    with driver(fresh) as second:
        before = parts(fresh)
        made = Counter({key: fresh.projected()[key] for key in killed_at})
        wait_for(lambda: parts(fresh) > before or second.poll() is not None, 400)  # a ceiling for crowded machines
        assert second.poll() is None, second.communicate()[0]
        stored = set(fresh.rows())
        earlier = fresh.projected()
        second.send_signal(signal.SIGTERM)
        assert second.wait(120) == 143
        assert not lock.exists()
        assert not Path(fresh.store, "manifest.json").exists()
        # Stopped, not killed: whatever the teacher had begun is in the store.
        assert set(fresh.rows()) > stored
        assert set(fresh.projected() - earlier) <= set(fresh.rows())

    done, seen = set(fresh.rows()), fresh.projected()
    assert 0 < len(done) < 24
    assert all(seen[key] == made[key] for key in killed_at), "what was in the store at the kill is not done again"
    books = generate(fresh.cfg, models=fresh.models())
    assert (books.inputs, books.ok, books.resumed) == (24, 24, len(done))
    assert sorted(fresh.rows()) == fresh.ids()
    again = fresh.projected() - seen
    assert set(again) == set(fresh.ids()) - done


def test_a_second_driver_is_refused(fresh: World) -> None:
    with driver(fresh) as first:
        wait_for(
            lambda: Path(fresh.store, "lock.json").exists() or first.poll() is not None, 400
        )  # a ceiling for crowded machines
        with driver(fresh) as second:
            output = second.communicate(timeout=400)[0]
        assert second.returncode == 1
        assert f"StoreLockedError: {fresh.store}: process {first.pid} on " in output
        assert "Traceback" not in output
