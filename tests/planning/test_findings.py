"""Findings as lines, as errors and as a document."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError, RefusedError, error_lines
from gmd_ray.planning import Findings


def test_lines_are_one_line_fit_for_a_terminal_and_without_passwords() -> None:
    found = Findings("adapt")
    found.error("data", "target.path", "s3://me:hunter2@host/x:\n cannot \x1b[2Jbe listed")
    found.error("data", "target.path", "s3://me:hunter2@host/x:\n cannot \x1b[2Jbe listed")
    [line] = found.lines
    assert line.message == "s3://***@host/x: cannot \\x1b[2Jbe listed"
    assert "hunter2" not in found.as_json()


def test_what_a_check_raises_is_found_and_the_others_go_on() -> None:
    found = Findings("adapt")
    for error in (DataError("no such folder"), RefusedError(["one", "two"]), OSError(5, "Input/output error")):
        with found.errors_of("data", "source.hq"):
            raise error
    assert [finding.message for finding in found.lines] == [
        "no such folder", "one", "two", "source.hq: [Errno 5] Input/output error",
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError), found.errors_of("data", ""):  # a fault of ours stays one
        _ = 1 / 0


def test_refusal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gmd_ray")
    found = Findings("adapt")
    found.fact("data", "", "four pairs")
    found.warn("gates", "tracking.gates[0]", "never holds")
    found.refuse()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "four pairs"), ("WARNING", "never holds"),
    ]  # fmt: skip
    found.error("gpu", "training.use_gpu", "no GPU")
    found.error("torn", "source.hq", "torn")
    with pytest.raises(RefusedError) as caught:
        found.refuse()
    assert isinstance(caught.value, ConfigError)
    assert error_lines(caught.value) == ("no GPU", "torn")
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.lines, str(again)) == (RefusedError, caught.value.lines, str(caught.value))
    document = json.loads(found.as_json())
    assert document["counts"] == {"error": 2, "warning": 1, "fact": 1}
    assert document["findings"][0] == {"level": "fact", "code": "data", "key": "", "message": "four pairs"}
    assert found.text().splitlines() == [
        "error    no GPU", "error    torn", "warning  never holds", "fact     four pairs",
        "adapt: 2 errors, 1 warning, 1 fact; 0.0 s",
    ]  # fmt: skip


def test_every_path_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = [f"{key}={tmp_path / key}" for key in ("source.hq", "student.path", "evaluation.target_lq")]
    assert main(["adapt", *args]) == 2
    assert capsys.readouterr().err.splitlines() == [f"gmd-ray: {arg}: no such file or folder" for arg in args]
    assert main(["check", "--json", *args]) == 2
    messages = [finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert messages == [f"{arg}: no such file or folder" for arg in args]
