"""Progress lines: counts, rate and time left, once per interval."""

from __future__ import annotations

import logging
import pickle
import time

import pytest

from gmd_ray.progress import NullRecorder, Progress


def test_one_line_per_interval(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, *(float(t) for t in range(1, 200))])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger="gmd_ray"), Progress("generate", 12, interval_s=5) as progress:
        for i in range(12):
            progress.update(1, ok=i + 1, failed=0)
    lines = [record.getMessage() for record in caplog.records]
    assert 2 <= len(lines) <= 4
    assert lines[0].startswith("generate ")
    assert "failed=0" in lines[0]
    assert "left" in lines[0]
    assert "12/12 img (100%)" in lines[-1]
    assert "done in" in lines[-1]


def test_a_stage_without_news_still_says_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        with Progress("generate", 12, interval_s=0.05, initial=4) as progress:
            progress.counts["ok"] = 4
            deadline = time.monotonic() + 10
            while len(caplog.records) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        ended = len(caplog.records)
        time.sleep(0.2)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == ended, "nothing is told after the end"
    assert all(line.startswith("generate 4/12 img (33%) | ok=4 | ") for line in lines)
    assert all("nothing new for " in line for line in lines[:-1])


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO, logger="gmd_ray"), Progress("generate", 12, interval_s=0.01):
        time.sleep(0.1)
    assert caplog.records == []


def test_parts_of_an_item_count_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("restore", 4)
    now[0] = 60
    progress.partly(0.5, "tiles 30/60 of a.png")
    assert progress.line() == "restore 0/4 img (0%) | tiles 30/60 of a.png | 0.0083 img/s | 7m00s left"
    now[0] = 120
    progress.update(1, failed=0)
    assert progress.line() == "restore 1/4 img (25%) | failed=0 | 0.0083 img/s | 6m00s left"


def test_the_time_left_shrinks_while_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the last news: an item that takes long does not make all others take as long."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("restore", 100)
    now[0] = 100
    progress.update(50)
    assert progress.line().endswith("| 1m40s left")
    now[0] = 160
    assert progress.line().endswith("| 40s left")
    now[0] = 300
    assert "left" not in progress.line()


def test_a_bar_without_news_keeps_its_clock_going(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("gmd_ray.progress.BAR_S", 0.05)
    with Progress("generate", 12):
        capsys.readouterr()
        time.sleep(1.3)
        shown = capsys.readouterr().err
    assert "0/12 [00:00<" in shown
    assert "0/12 [00:01<" in shown


def test_null_recorder_pickles_and_nests() -> None:
    recorder = pickle.loads(pickle.dumps(NullRecorder()))
    with recorder.stage("a") as child:
        child.metrics({"x": 1.0}, step=3)
