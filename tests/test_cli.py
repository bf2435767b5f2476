"""The command line: what a person sees, and how fast a mistake is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gmd_ray.cli import main

ROOT = Path(__file__).parents[1]


def test_help_and_mistakes_load_nothing_heavy() -> None:
    code = (
        "import sys; from gmd_ray.cli import main\n"
        "status = main(['adapt', 'preset=demo', 'teacher.stepz=3'])\n"
        "heavy = [m for m in ('torch', 'ray', 'mlflow', 'pyiqa', 'diffusers') if m in sys.modules]\n"
        "print(status, heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 []"
    assert result.stderr.strip().count("\n") == 0
    assert "did you mean 'teacher.steps'" in result.stderr


@pytest.mark.parametrize("verb", ["adapt", "generate", "pretrain", "finetune", "evaluate"])
def test_a_verb_names_what_it_lacks(verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([verb, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "student.path" in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists(), "nothing is left behind by a refused run"


def test_config_prints_what_config_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "preset=demo", "training.steps=7"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["training"]["steps"] == 7
    (tmp_path / "saved.yaml").write_text(text)
    assert main(["config", f"config={tmp_path / 'saved.yaml'}"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


@pytest.mark.parametrize(("what", "name"), [("metrics", "niqe"), ("presets", "demo"), ("degradations", "noise25")])
def test_ls(what: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", what]) == 0
    assert name in capsys.readouterr().out.split()


def test_encode_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gmd_ray.config import TeacherConfig
    from gmd_ray.teachers import load_teacher
    from tests.teachers.conftest import make_flux
    from tests.teachers.text_encoders import write_text_encoders

    flux = make_flux(tmp_path / "flux", autoencoder=False)
    settings = [f"teacher.path={flux}", f"out={tmp_path / 'run'}", "teacher.max_sequence_length=7"]
    assert main(["encode-prompts", *settings]) == 0
    assert "nothing to encode" in capsys.readouterr().out, "the null prompt is in the table"
    assert main(["encode-prompts", *settings, "--prompt", "ab"]) == 2
    assert "there is no text_encoder/" in capsys.readouterr().err
    write_text_encoders(flux)
    assert main(["encode-prompts", *settings, "--prompt", "ab", "--prompt", "ba"]) == 0
    key, _, file = capsys.readouterr().out.strip().partition("=")
    assert key == "teacher.prompt_embeddings"
    assert Path(file).parent == tmp_path / "run" / "prompts"
    for folder in ("text_encoder", "text_encoder_2"):
        shutil.rmtree(flux / folder)
    cfg = TeacherConfig(path=str(flux), prompt="ba", max_sequence_length=7, prompt_embeddings=file)
    cfg.injection.steps = 0
    load_teacher(cfg)


def test_unknown_degradation_is_told_before_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ["adapt", "preset=demo", f"out={tmp_path / 'run'}", "source.lq=null", "source.degradation=noise52"]
    assert main(args) == 2
    assert "did you mean 'noise25'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["adapt", "generate", "pretrain", "finetune", "evaluate", "export", "encode-prompts"])
def test_jobs_are_the_same_verbs(verb: str) -> None:
    script = ROOT / "jobs" / f"{verb.replace('-', '_')}.py"
    result = subprocess.run([sys.executable, script, "no-such"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "key=value" in result.stderr or "--to" in result.stderr
