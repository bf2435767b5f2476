"""Exit statuses of the command line, verb by verb, against the table in the documentation."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from gmd_ray import errors
from gmd_ray.cli import main
from gmd_ray.errors import ExitCode, GmdError, RefusedError
from gmd_ray.planning.findings import Findings
from gmd_ray.ray_utils.remote_errors import as_text, from_text

ROOT = Path(__file__).parents[2]

MEANINGS = {
    "GmdError": 1, "ReplicaLostError": 1, "ConfigError": 2, "RefusedError": 2, "ModelError": 2,
    "ResumeMismatchError": 2, "DataError": 3, "StorageError": 3, "BooksError": 3, "InterruptedRunError": 5,
}  # fmt: skip


def test_every_error_has_the_status_of_its_kind() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GmdError)}
    assert {name: int(kind.exit_code) for name, kind in kinds.items()} == MEANINGS


def test_a_worker_s_error_keeps_its_status() -> None:
    for name in MEANINGS.keys() - {"RefusedError"}:
        assert from_text(as_text(getattr(errors, name)("x"))).exit_code == MEANINGS[name]


@pytest.mark.parametrize(
    ("codes", "status"),
    [([], 0), (["torn"], 3), (["sizes", "data"], 3), (["gpu"], 2), (["torn", "config"], 2)],
)
def test_a_preflight_tells_data_from_settings(codes: list[str], status: int) -> None:
    found = Findings("adapt")
    found.warn("torn", "", "a warning changes nothing")
    for code in codes:
        found.error(code, "", f"wrong: {code}")
    assert found.exit_code == status
    if codes:
        with pytest.raises(RefusedError) as caught:
            found.refuse()
        assert caught.value.exit_code == status


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["ls", "presets"], 0),
        (["config", "preset=toy"], 0),
        (["config", "preset=nowhere"], 2),
        (["adapt", "training.stepz=1"], 2),
        (["check", "training.stepz=1"], 2),
        (["status", "{here}"], 3),
        (["status", "{here}", "--json"], 3),
        (["verify", "{here}"], 3),
        (["gate", "{here}"], 3),
        (["sheet", "{here}"], 3),
        (["export", "out={here}", "--to", "{here}/x"], 3),
        (["restore", "-i", "{here}/none", "-o", "{here}/out", "-m", "{here}/none.pth"], 2),
        (["import", "--from", "wds:{here}/none", "-o", "{here}/out", "--lq", "a"], 3),
        (["submit"], 2),
        (["submit", "adapt", "--address", "127.0.0.1:6379"], 2),
        (["submit", "serve", "runs/x", "--address", "http://127.0.0.1:1"], 2),
        (["submit", "status", "x", "--env", "NOT_SET_ANYWHERE", "--address", "http://127.0.0.1:1"], 2),
        (["submit", "status", "x", "--include", "../x", "--address", "http://127.0.0.1:1"], 2),
        (["submit", "status", "x", "--address", "http://127.0.0.1:1"], 1),
        (["submit", "adapt", "training.stepz=1", "--address", "http://127.0.0.1:1"], 2),
    ],
)
def test_verbs(
    words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main([word.replace("{here}", str(tmp_path)) for word in words]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_argparse_agrees() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["status"])
    assert caught.value.code == ExitCode.SETTINGS


def test_interruption_is_no_status_of_a_shell() -> None:
    """A script can tell an orderly end from one by the system, which is 128 and more."""
    assert ExitCode.INTERRUPTED not in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_the_documentation_lists_every_status() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    [table] = re.findall(r"## Exit status\n(.*?)\n## ", text, re.DOTALL)
    assert [int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)] == [int(code) for code in ExitCode]
