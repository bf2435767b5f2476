"""A run that is well passes; one that is not is refused with everything that stands in its way, and leaves no trace."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ExitCode, RefusedError
from gmd_ray.planning import STAGES, Preflight
from gmd_ray.ready import ready
from tests.planning.conftest import config, pairs, picture, settings, tear


def trace(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("verb", ["adapt", "generate", "evaluate", "plan"])
def test_nothing_is_found_of_a_run_that_is_well(verb: str, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    before = trace(tmp_path)
    found = Preflight(cfg, verb).run()
    assert [finding.message for finding in found.lines if finding.level != "fact"] == []
    roles = {listed.role for listed in found.sets}
    wanted = {
        "adapt": {"source", "target", "target test", "source test"},
        "generate": {"target"},
        "evaluate": {"target test", "source test"},
        "plan": {"source", "target", "target test", "source test"},
    }
    assert roles == wanted[verb]
    assert trace(tmp_path) == before


def test_all_errors_at_once_and_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmd_ray.adapt.ray_session", lambda cfg: pytest.fail("Ray was started"))
    monkeypatch.setattr("gmd_ray.planning.machine.visible_gpus", lambda: 0)
    args = settings(tmp_path, "training.use_gpu=true", "teacher.device=cuda")
    tear(tmp_path / "source_hq" / "3.png")
    picture(tmp_path / "source_lq" / "1.png", 64, 96)
    before = trace(tmp_path)
    assert main(["adapt", *args]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gmd-ray: ")]
    assert len(errors) == 4, errors
    for words in (
        "training.use_gpu=true",
        "teacher.device=cuda",
        "3.png: damaged or truncated",
        "1.png: hq 48x32, lq 96x64",
    ):
        assert sum(words in line for line in errors) == 1, words
    assert trace(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["adapt", "generate", "finetune", "evaluate", "pretrain"])
def test_a_finished_run_is_left_as_it_was(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistaken command over it changes neither its files nor a row of its MLflow database."""
    for room in ("adapt", "ray_utils.session"):
        monkeypatch.setattr(f"gmd_ray.{room}.ray_session", lambda cfg: pytest.fail("Ray was started"))
    args = settings(tmp_path, "training.use_gpu=true", "student.device=cuda:7", "evaluation.device=cuda:7")
    out = tmp_path / "run"
    out.mkdir()
    with sqlite3.connect(out / "mlflow.db") as database:
        database.execute("create table runs (status text)")
        database.execute("insert into runs values ('FINISHED')")
    (out / "config.yaml").write_text("seed: 0\n")
    before = trace(tmp_path)
    monkeypatch.setattr("gmd_ray.planning.machine.visible_gpus", lambda: 0)
    assert main([verb, *args]) == 2
    assert trace(tmp_path) == before


def test_static_errors_of_the_demo_come_before_its_world_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmd_ray.config.load import load_config

    monkeypatch.setattr("gmd_ray.planning.machine.visible_gpus", lambda: 0)
    cfg = load_config(["preset=toy", f"out={tmp_path / 'run'}", "training.use_gpu=true"])
    with pytest.raises(RefusedError, match=r"training\.use_gpu"):
        ready(cfg, "adapt")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_drawn_and_then_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gmd_ray.config.load import load_config
    from gmd_ray.demo.toy import prepare as preparation

    small = preparation.WorldSize(seed=7, target=8, severe=2, source=6, target_test=4, source_test=3)
    monkeypatch.setattr(preparation, "WorldSize", lambda: small)
    cfg = load_config(["preset=toy", f"out={tmp_path / 'run'}", "training.cpus_per_worker=1"])
    counts = {listed.role: listed.count for listed in ready(cfg, "adapt").sets}
    assert counts == {"source": 6, "target": 8, "target test": 4, "source test": 3, "truth for the report": 8}
    assert (tmp_path / "run" / "config.yaml").is_file()
    found = Preflight(cfg, "adapt").run()
    assert found.ok
    assert found.of("warning") == []


def test_check_says_it_in_lines_and_as_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = settings(tmp_path)
    assert main(["check", *args]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[-1].startswith("adapt: 0 errors, 0 warnings, ")
    tear(tmp_path / "source_hq" / "3.png")
    tear(tmp_path / "photos" / "2.jpg")
    assert main(["check", *args]) == ExitCode.DATA
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith("error    source.hq=")
    assert text[1].startswith("warning  1 of 4 target photos cannot be read and will be failed rows (2.jpg: ")
    assert main(["check", "--json", "--for", "generate", *args]) == 0, "it does not read the source"
    document = json.loads(capsys.readouterr().out)
    assert (document["verb"], document["ok"]) == ("generate", True)
    assert document["counts"]["warning"] == 1 == sum(f["level"] == "warning" for f in document["findings"])
    assert [f["key"] for f in document["findings"] if f["code"] == "torn"] == ["target.path"]
    assert document["sets"] == [{"role": "target", "count": 4, "lq": str(tmp_path / "photos"), "hq": None}]
    assert not (tmp_path / "run").exists()


def test_check_goes_on_behind_what_the_settings_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [word for word in settings(tmp_path) if not word.startswith("teacher.path")]
    tear(tmp_path / "source_hq" / "3.png")
    assert main(["check", "--json", *args]) == 2
    messages = [f["message"] for f in json.loads(capsys.readouterr().out)["findings"] if f["level"] == "error"]
    assert any(m.startswith("adapt needs teacher.path=") for m in messages)
    assert any("3.png" in m for m in messages)
    assert main(["check", "--json", "teacher.stepz=3"]) == 2
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["code"], "did you mean 'teacher.steps'" in finding["message"]) == ("config", True)


def test_every_verb_that_runs_for_long_has_one() -> None:
    from gmd_ray.verbs.runs import CHECKED

    verbs = {"adapt", "generate", "finetune", "pretrain", "evaluate", "plan", "ablate"}
    assert set(CHECKED) == set(STAGES) == verbs


def test_ray_and_mlflow_are_not_started() -> None:
    code = (
        "import sys; from gmd_ray.planning import Preflight\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pyiqa', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_in_messages_are_fit_for_a_terminal(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (tmp_path / "photos" / "a\nerror: \x1b[2J.jpg").write_bytes(b"no image")
    [warning] = Preflight(cfg, "generate").run().of("warning")
    assert warning.message.isprintable()
    assert "\\x1b[2J" in warning.message


def test_finetune_by_itself_wants_a_finished_store(tmp_path: Path) -> None:
    errors = [finding.message for finding in Preflight(config(tmp_path), "finetune").run().of("error")]
    assert any("no finished pair store here" in line for line in errors)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("source_x4", "4 of 4 pairs do not fit (0.png: hq 64x64, lq 16x16"),
        ("source_torn", "1 of 4 images cannot be read (3.png: damaged or truncated PNG"),
    ],
)
def test_the_inputs_that_strangers_gave(name: str, words: str, tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "inputs" / name
    if not folder.is_dir():
        pytest.skip("no shared inputs here")
    cfg = config(tmp_path, f"source.hq={folder / 'hq'}", f"source.lq={folder / 'lq'}")
    [error] = Preflight(cfg, "adapt").run().of("error")
    assert words in error.message


def test_pretrain_of_a_new_network_looks_at_the_pairs_themselves(tmp_path: Path) -> None:
    hq, lq = pairs(tmp_path, "x2", scale=2)
    more = (f"source.hq={hq}", f"source.lq={lq}", "pretrain.architecture=Compact")
    assert Preflight(config(tmp_path, *more), "pretrain").run().of("error") == []
    picture(hq / "1.png", 96, 144)
    [error] = Preflight(config(tmp_path, *more), "pretrain").run().of("error")
    assert "several scales (x2: 3, x3: 1)" in error.message
