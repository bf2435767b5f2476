"""An adapted student costs what the unadapted one costs; `tests/benchmarks/latency.py` prints the figures."""

from __future__ import annotations

from tests.benchmarks.latency import compare, trained_a_step
from tests.students.networks import save_network


def test_adaptation_costs_no_latency(tmp_path):
    source, adapted = tmp_path / "source.pth", tmp_path / "adapted.pth"
    save_network(source, "nafnet")
    trained_a_step(source, adapted, "cpu")
    found = compare(source, adapted, side=96, pairs=20, device="cpu", cpu_time=True)
    assert found.parameters[0] == found.parameters[1]
    assert 0.6 < found.ratio < 1.6  # wide: neighbours on the machine slow single calls by far more
