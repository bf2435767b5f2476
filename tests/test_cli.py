"""The command line: what a person sees, and how fast a mistake is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, ExitCode

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["adapt", "preset=toy", "teacher.stepz=3"], "did you mean 'teacher.steps'"),
        (["adapt", "preset=deblur_reds"], "adapt needs student.path=..., data.root=..."),
        (["plan", "preset=deblur_reds"], "plan needs data.root=..."),
        (["evaluate", "preset=toy", "out=s3://bucket/run"], "draws images into a local folder"),
        (["generate", "preset=base", "target.path=/", "student.path=/", "teacher.path=/", "out=s3://bucket/run"],
         "set tracking.uri (or MLFLOW_TRACKING_URI) to a server, or tracking.enabled=false"),
    ],
)  # fmt: skip
def test_help_and_mistakes_load_nothing_heavy(args: list[str], line: str) -> None:
    code = (
        "import sys; from gmd_ray.cli import main\n"
        f"status = main({args!r})\n"
        "heavy = [m for m in ('torch', 'ray', 'mlflow', 'pyiqa', 'diffusers') if m in sys.modules]\n"
        "print(status, heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 []"
    assert result.stderr.strip().count("\n") == 0
    assert line in result.stderr


def test_settings_may_stand_behind_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ["export", f"out={tmp_path / 'no run'}", "--to", str(tmp_path / "pairs"), "scorer.threshold=4"]
    assert main(args) == ExitCode.DATA
    assert "no pair store here" in capsys.readouterr().err
    for more in (["--wrong"], ["wrong"], ["--wrong", "a.b=c"]):
        with pytest.raises(SystemExit, match="2"):
            main([*args, *more])
        assert f"unrecognized arguments: {' '.join(['scorer.threshold=4', *more])}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["status", str(tmp_path), "scorer.threshold=4"])
    assert "unrecognized arguments: scorer.threshold=4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["adapt", "--preset", "toy"], "settings are given without dashes: preset=toy"),
        (["adapt", "--preset=toy"], "settings are given without dashes: preset=toy"),
        (["generate", "--training.steps=7"], "without dashes: training.steps=7"),
        (["generate", "--source-hq", "photos"], "without dashes: source.hq=photos"),
        (["plan", "preset=toy", "--source_ratio", "0.5", "--probe", "2"], "without dashes: training.source_ratio=0.5"),
        (["evaluate", "--config", "x.yaml"], "without dashes: config=x.yaml"),
        (["config", "--out"], "without dashes: out=..."),
        (["finetune", "-lr", "1"], "without dashes: training.lr=1 or pretrain.lr=1"),
        (["adopt"], "no verb 'adopt'; did you mean 'adapt'?"),
        (["restor", "-i", "x"], "no verb 'restor'; did you mean 'restore'?"),
        (["zzz"], "no verb 'zzz'; known: ablate, adapt, check, compare, "),
    ],
)
def test_a_word_that_is_nearly_right_gets_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert hint in capsys.readouterr().err.splitlines()[-1]


def test_failed_rows_are_tried_again_by_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "gmd_ray.verbs.settings.require", lambda cfg, verb: seen.append((verb, cfg.generation.retry_failed))
    )
    monkeypatch.setattr(
        "gmd_ray.verbs.settings.check_out", lambda cfg, files: (_ for _ in ()).throw(ConfigError("enough"))
    )
    for verb in ("adapt", "generate"):
        assert main([verb, "--retry-failed"]) == main([verb]) == 2
    assert seen == [("adapt", True), ("adapt", False), ("generate", True), ("generate", False)]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m gmd_ray.cli ls metrics | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=True)
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


@pytest.mark.usefixtures("capfd")  # a stdout that is a file
def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> int:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr("gmd_ray.verbs.runs.load_settings", broken)
    with pytest.raises(BrokenPipeError):
        main(["plan"])


@pytest.mark.parametrize("verb", ["adapt", "generate", "pretrain", "finetune", "evaluate"])
def test_a_verb_names_what_it_lacks(verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([verb, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "student.path" in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists(), "nothing is left behind by a refused run"


def test_config_prints_what_config_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "preset=toy", "training.steps=7"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["training"]["steps"] == 7
    (tmp_path / "saved.yaml").write_text(text)
    assert main(["config", f"config={tmp_path / 'saved.yaml'}"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("metrics", "niqe no reference, lower is better"),
        ("metrics", "psnr needs ground truth, higher is better"),
        ("metrics", "fid needs ground truth, lower is better, of a whole set of images"),
        ("presets", "deblur_reds Motion deblurring, GoPro to REDS (paper, Table 3)"),
        ("degradations", "noise25 one round: scale=1, noise_prob=1, noise_sigma=[25, 25]"),
        ("degradations", "realesrgan Real-ESRGAN's two rounds: scale=4"),
    ],
)
def test_ls_says_what_each_name_stands_for(what: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", what]) == 0
    assert line in [" ".join(printed.split()) for printed in capsys.readouterr().out.splitlines()]


TOY_TEACHER = ROOT / "gmd_ray" / "demo" / "toy" / "weights" / "teacher"


def test_ls_teachers_describes_a_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ls", "teachers", str(TOY_TEACHER)]) == 0
    [header, line, _, note] = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["teacher", "method", "family", "licence"]
    cells = line.split()
    assert cells[:4] == ["gmd_ray/demo/toy/weights/teacher", "inversion", "FLUX.1", "commercial"]
    assert line.endswith("README.md: license: apache-2.0")
    assert note.startswith("TFLOP: of one forward")
    assert main(["ls", "teachers", str(tmp_path)]) == 2
    assert "no transformer/config.json with a vae/config.json" in capsys.readouterr().err
    assert main(["ls", "presets", str(tmp_path)]) == 2
    assert "only `ls teachers` takes directories" in capsys.readouterr().err


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


def test_a_field_of_a_degradation_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["degrade", "-i", "/", "-o", "/no/where", "--preset", "noise25"]
    assert main([*args, "--set", "noise_sigma=[1"]) == 2
    assert capsys.readouterr().err.startswith("gmd-ray: --set noise_sigma=[1: not YAML (")


def test_unknown_degradation_is_told_before_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ["adapt", "preset=toy", f"out={tmp_path / 'run'}", "source.lq=null", "source.degradation=noise52"]
    assert main(args) == 2
    assert "did you mean 'noise25'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    ["adapt", "generate", "pretrain", "finetune", "evaluate", "export", "encode-prompts", "plan", "restore", "degrade"],
)
def test_jobs_are_the_same_verbs(verb: str) -> None:
    script = ROOT / "jobs" / f"{verb.replace('-', '_')}.py"
    result = subprocess.run([sys.executable, script, "no-such"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert any(word in result.stderr for word in ("key=value", "--to", "--input", "--preset"))


@pytest.mark.parametrize("verb", ["plan", "verify", "status", "gate", "sheet"])
def test_every_verb_says_in_a_line_what_it_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    description = capsys.readouterr().out.split("\n\n")[1]
    assert 20 < len(description) < 100
    assert "\n" not in description.strip()
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert f"    {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["verify", "status", "gate", "sheet"])
def test_where_there_is_no_store(verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([verb, str(tmp_path)]) == ExitCode.DATA
    assert capsys.readouterr().err.strip() == (
        f"gmd-ray: {tmp_path}: no pair store here, nor in pairs/ below; give the directory that holds rows/"
    )
    assert not list(tmp_path.iterdir())


def test_export_honours_the_second_opinion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gmd_ray.pairstore.store import PairStore
    from tests.generation.shelf import fill, finish, ok_row

    store = PairStore(str(tmp_path / "run" / "pairs"))
    rows = [ok_row(f"{i}.png", 6.0, fidelity=20.0 + i) for i in range(4)]
    fill(store, [rows])
    finish(store, rows, fidelity="psnr")
    assert main(["export", f"out={tmp_path / 'run'}", "--to", str(tmp_path / "as the run")]) == 0
    assert capsys.readouterr().out.startswith("4 accepted pairs at threshold 5 written"), "the last run's gate"
    bounded = ["export", f"out={tmp_path / 'run'}", "scorer.fidelity=psnr", "scorer.fidelity_bound=22"]
    assert main([*bounded, "--to", str(tmp_path / "bounded")]) == 0
    assert capsys.readouterr().out.startswith("2 accepted pairs at threshold 5 and psnr bound 22"), "its threshold too"
    args = ["export", f"out={tmp_path / 'run'}", "scorer.threshold=5", "scorer.fidelity=psnr"]
    assert main([*args, "scorer.fidelity_bound=22", "--to", str(tmp_path / "pairs")]) == 0
    assert capsys.readouterr().out.startswith("2 accepted pairs at threshold 5 and psnr bound 22 written")
    assert len(list((tmp_path / "pairs" / "lq").iterdir())) == 2
    assert main([*args, "scorer.fidelity_bound=99", "--to", str(tmp_path / "none")]) == ExitCode.DATA
    assert "no pair is accepted at threshold 5 and psnr >= 99" in capsys.readouterr().err
    args[-1] = "scorer.fidelity=ssim"
    assert main([*args, "scorer.fidelity_bound=0.5", "--to", str(tmp_path / "none")]) == ExitCode.DATA
    assert "its rows were made with scorer.fidelity=psnr" in capsys.readouterr().err
