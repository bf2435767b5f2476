"""The private Ray session, in a process of its own: this one has another."""

from __future__ import annotations

import subprocess
import sys

import pytest

SMALL_MACHINE = """
import os
os.cpu_count = lambda: 1
import ray
from gmd_ray.config import Config
from gmd_ray.generation.cluster import check_capacity
from gmd_ray.session import ray_session

cfg = Config()
cfg.ray.object_store_memory = 80_000_000
with ray_session(cfg):
    check_capacity(cfg)
    print("CPUs", ray.cluster_resources()["CPU"])
assert not ray.is_initialized()
cfg.ray.num_cpus = 2
with ray_session(cfg):
    print("CPUs", ray.cluster_resources()["CPU"])
    try:
        check_capacity(cfg)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_default_pools_fit_on_a_machine_with_too_few_cpus() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL_MACHINE], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second, refusal = done.stdout.splitlines()
    assert first == "CPUs 4.0", "three pools of one, reading and writing"
    assert second == "CPUs 2.0", "what was asked for"
    assert "the smallest pools need 3.4" in refusal
