"""The way of one image, against rows that were written by hand; and the verbs that speak JSON, against their text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import DataError
from gmd_ray.pairstore.audit.image_path import read_image_path
from gmd_ray.pairstore.parts import part_name
from gmd_ray.pairstore.store import PairStore
from tests import PATIENCE_S
from tests.generation.shelf import failed_row, fill, finish, lock, ok_row

ROOT = Path(__file__).parents[3]
DONE = ok_row("a/1.png", 5.0) | {"seconds_restore": 0.5, "seconds_project": 20.0, "seconds_score": 0.25, "attempts": 2}
FAILED = failed_row("a/2.png", "project", "OutOfMemoryError") | {"seconds_restore": 0.5}
ROWS = [DONE, FAILED, failed_row("f.png")]


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    store = PairStore(str(tmp_path / "run" / "pairs"))
    fill(store, [ROWS[:2], ROWS[2:]])
    finish(store, ROWS)
    return store


def test_a_finished_image(store: PairStore) -> None:
    path = read_image_path(store, "a/1.png")
    assert (path.status, path.score, path.attempts) == ("ok", 5.0, 2)
    assert Path(path.part).name == part_name(["a/1.png", "a/2.png"])
    assert [(step.stage, step.state, step.seconds) for step in path.steps] == [
        ("read", "done", None), ("restore", "done", 0.5), ("project", "done", 20.0), ("score", "done", 0.25),
    ]  # fmt: skip
    assert [step.model for step in path.steps] == [None, DONE["student"], DONE["teacher"], DONE["scorer"]]
    assert "project    done        20 s, model " in str(path)


def test_a_failed_image_stops_where_it_failed(store: PairStore) -> None:
    states = [(step.stage, step.state) for step in read_image_path(store, "a/2.png").steps]
    assert states == [("read", "done"), ("restore", "done"), ("project", "failed"), ("score", "not reached")]
    [error] = [step.error for step in read_image_path(store, "f.png").steps if step.error]
    assert error.startswith("DataError: ")


def test_an_image_that_is_not_there(store: PairStore) -> None:
    with pytest.raises(DataError, match=r"no row of 'a/3.png' yet; did you mean 'a/[12].png'"):
        read_image_path(store, "a/3.png")


def test_the_verbs_as_documents(store: PairStore, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> dict[str, object]:
        main([words[0], store.url, *words[1:], "--json"])
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    status = told("status")
    assert (status["ok"], status["failed"], status["rows"], status["inputs"]) == (1, 2, 3, 3)
    assert status["failures"] == {"project: OutOfMemoryError": 1, "read: DataError": 1}
    assert told("status", "--image", "a/1.png")["score"] == 5.0
    verified = told("verify")
    assert verified["ok"] == (verified["findings"] == [])
    assert verified["rows"] == 3
    gate = told("gate", "--threshold", "4")
    assert (gate["scored"], gate["accepted"], gate["threshold"]) == (1, 1, 4.0)
    assert {"threshold": 4.0, "accepted": 1} in gate["curve"]  # type: ignore[operator]


def test_watching_ends_with_the_run(store: PairStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", store.url, "--watch", "1"]) == 0
    assert capsys.readouterr().out.count("1 ok, 2 failed") == 1


def test_watching_goes_on_while_a_driver_works_and_ctrl_c_ends_it(store: PairStore) -> None:
    lock(store, since=9.0)
    command = [sys.executable, "-m", "gmd_ray.cli", "status", store.url, "--watch", "1", "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert [json.loads(line)["ok"] for line in lines] == [1, 1]
    assert (process.returncode, errors) == (0, "")
