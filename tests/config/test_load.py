"""Settings from presets, files and overrides; what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.config.load import load_config, resolved, save_config
from gmd_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def refusal(*args: str) -> str:
    """The error line that these arguments earn."""
    with pytest.raises(ConfigError) as caught:
        load_config(args)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_defaults_are_the_schema() -> None:
    cfg = load_config([])
    cfg.out = Config().out  # made absolute on loading
    assert cfg == Config()


def test_overrides_go_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {steps: 7, batch_size: 5}\n")
    cfg = load_config(["training.steps=9", f"config={file}", "preset=toy"])
    assert (cfg.training.steps, cfg.training.batch_size) == (9, 5)
    assert cfg.training.lr == load_config(["preset=toy"]).training.lr != load_config([]).training.lr


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\n")
    assert load_config([f"preset={file}"]).seed == 3


def test_values_are_typed() -> None:
    cfg = load_config(
        ["training.lr=2e-5", "training.betas=[0.8,0.95]", "source.limit=3", "generation.keep_restored=false"]
    )
    assert cfg.training.lr == 2e-5
    assert cfg.training.betas == (0.8, 0.95)
    assert cfg.source.limit == 3
    assert cfg.generation.keep_restored is False


def test_a_value_may_hold_an_equals_sign_and_a_comma() -> None:
    cfg = load_config(["teacher.prompt=a photo, f=2.8", "target.path=s3://bucket/a?region=b"])
    assert (cfg.teacher.prompt, cfg.target.path) == ("a photo, f=2.8", "s3://bucket/a?region=b")


def test_gates_are_dataclasses() -> None:
    cfg = load_config(["tracking.gates=[{metric: ssim, min_gain: 0.01}]"])
    (gate,) = cfg.tracking.gates
    assert (gate.metric, gate.dataset, gate.min_gain) == ("ssim", "target", 0.01)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("teacher.stps=3", "did you mean 'teacher.steps'?"),
        ("teachr.steps=3", "did you mean 'teacher.steps'?"),
        (
            "teacher.quantization=fp8",
            "no setting teacher.quantization; its place is taken by 'teacher.precision'",
        ),
        ("student.pool.mx=2", "did you mean 'student.pool.max'?"),
        ("source_ratio=0.5", "did you mean 'training.source_ratio'?"),
        (
            "steps=9",
            "did you mean 'teacher.steps' or 'teacher.injection.steps' or 'training.steps' or 'pretrain.steps'?",
        ),
        ("tracking.gates=[{metrc: psnr}]", "did you mean 'tracking.gates[0].metric'?"),
        ("zzz=1", "known here: controls, data, evaluation, generation,"),
        ("preset=toi", "did you mean 'toy'?"),
    ],
)
def test_unknown_names_get_the_nearest(override: str, hint: str) -> None:
    line = refusal(override)
    assert line.startswith(override)
    assert hint in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.steps=abc", "teacher.steps=abc: teacher.steps must be a whole number"),
        ("training.steps=2.5", "must be a whole number"),
        ("generation.keep_restored=maybe", "must be true or false"),
        ("seed=null", "must be a whole number, not null"),
        ("training.betas=[0.9]", "training.betas must be 2 numbers, as training.betas=[0.1, 0.2]"),
        ("teacher=5", "teacher is a section; set single keys of it, as teacher.path=..."),
        ("tracking.gates.0.metric=ssim", "tracking.gates is a list"),
        ("evaluation.metrics=psnr", "evaluation.metrics=[...]"),
        ("evaluation.weights=[x]", "as evaluation.weights.NAME=..."),
        ("training.betas=[0.9,b]", "training.betas[1]=b must be a number"),
        ("out=${nowhere}", "out=${nowhere}: Interpolation key 'nowhere' not found; \\${ is text"),
        ("out=${teacher.steps", "cannot be read"),
        ("teacher.steps=[1", "cannot be read"),
        ("foo", "key=value"),
        ("=3", "key=value"),
    ],
)
def test_wrong_types_and_wrong_syntax(override: str, words: str) -> None:
    line = refusal(override)
    assert words in line
    assert override.split("=")[0] in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"teacher: {stps: 1}", "did you mean 'teacher.steps'?"),
        (b"teacher: {quantization: none}", "its place is taken by 'teacher.precision'"),
        (b"- 1\n- 2\n", "must hold settings as key: value"),
        (b"a: [1", "not YAML"),
        (b"\xff\xfe\x00", "not a text file"),
        (None, "no such file"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_bytes(content)
    line = refusal(f"config={file}")
    assert words in line
    assert f"config={file}" in line


def test_only_one_settings_file(tmp_path: Path) -> None:
    """The second would replace the first as a whole, and silently: its settings are not laid over it."""
    files = [tmp_path / "base.yaml", tmp_path / "mine.yaml"]
    for file in files:
        file.write_text("training: {steps: 7}\n")
    line = refusal(*(f"config={file}" for file in files))
    assert all(str(file) in line for file in files)


def test_saved_settings_read_back_the_same(tmp_path: Path) -> None:
    cfg = load_config(
        [
            "preset=toy",
            "training.betas=[0.5,0.6]",
            "source.degradation_args={noise_sigma: [5, 10]}",
            "teacher.injection.blocks=[a,b]",
            "teacher.prompt='yes: \"1\" \u00e9'",
        ]
    )
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config([f"config={tmp_path / 'config.yaml'}"]) == cfg
    assert resolved(cfg)["training"]["betas"] == (0.5, 0.6)


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "lpips.pth").touch()
    cfg = load_config(
        [
            "out=runs/x",
            "target.path=photos",
            "source.hq=s3://bucket/hq",
            "teacher.path=owner/model",
            "evaluation.weights.lpips=lpips.pth",
        ]
    )
    assert cfg.out == str(tmp_path / "runs/x")
    assert cfg.target.path == str(tmp_path / "photos")
    assert cfg.source.hq == "s3://bucket/hq"
    assert cfg.teacher.path == "owner/model"
    assert cfg.evaluation.weights == {"lpips": str(tmp_path / "lpips.pth")}


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    cfg = load_config(["out=~/runs/x", "target.path=~/photos", "source.hq=s3://bucket/~a"])
    assert (cfg.out, cfg.target.path) == (str(tmp_path / "runs/x"), str(tmp_path / "photos"))
    assert cfg.source.hq == "s3://bucket/~a"


def test_a_job_writes_outside_its_throw_away_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert load_config(["out=runs/x"]).out == str(tmp_path / "gmd_ray/runs/x")
    assert load_config(["out=/elsewhere"]).out == "/elsewhere"
    uri = load_config(["tracking.uri=sqlite:///mlflow.db"]).tracking.uri
    assert uri == f"sqlite:///{tmp_path}/gmd_ray/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "resolved_uri"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"),
        ("sqlite:///a/b.db", "sqlite:///{cwd}/a/b.db"),
        ("sqlite:///~/b.db", "sqlite:///{cwd}/home/b.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("http://server:5000", "http://server:5000"),
        ("databricks", "databricks"),
    ],
)
def test_a_database_is_found_from_any_working_directory(
    uri: str, resolved_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_config([f"tracking.uri={uri}"]).tracking.uri == resolved_uri.format(cwd=tmp_path)


def test_a_mistake_is_told_before_anything_heavy_is_imported() -> None:
    code = """
import sys
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError
try:
    load_config(["preset=toy", "teacher.stps=3"])
except ConfigError as error:
    print(error)
heavy = {"torch", "ray", "pyiqa", "diffusers", "transformers", "mlflow", "pyarrow", "numpy", "cv2"}
print(sorted(heavy & set(sys.modules)))
"""
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    seconds = time.monotonic() - start
    assert run.stdout.splitlines() == [
        "teacher.stps=3: no setting teacher.stps; did you mean 'teacher.steps'?",
        "[]",
    ]
    assert seconds < 10  # 0.4 s on an idle core; torch alone would take longer than this on a busy one
