"""The timeline of a cluster over a run that is known."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.benchmarks.cluster.timeline import Timeline, draw


def test_a_timeline_counts_nodes_calls_and_images(tmp_path: Path) -> None:
    nodes = [(99.5, 0), (101.8, 2), (107.2, 1), (109.5, 0)]
    calls = [(102.0, 104.0, 2), (102.0, 106.0, 4), (104.0, 106.0, 2)]
    timeline = Timeline.of(100.0, nodes, calls, [(107.0, "a node is killed")])
    timeline.write(tmp_path)
    draw(timeline, tmp_path / "timeline.svg", most=2)
    with open(tmp_path / "timeline.csv") as file:
        rows = {float(row["seconds"]): row for row in csv.DictReader(file)}
    assert [rows[t]["nodes"] for t in (0.0, 2.0, 7.0, 8.0, 10.0)] == ["0", "2", "2", "1", "0"]
    assert [rows[t]["busy"] for t in (1.0, 3.0, 5.0, 6.0)] == ["0", "2", "2", "0"]
    # In the 5 s around second 4, all three calls end; around second 1 none does.
    assert (float(rows[4.0]["images_per_second"]), float(rows[1.0]["images_per_second"])) == (8 / 5, 0.0)
    said = timeline.summary()
    assert (said["most_nodes"], said["all_up_s"], said["all_gone_s"]) == (2, 2.0, 10.0)
    assert "a node is killed" in (tmp_path / "timeline.svg").read_text()
