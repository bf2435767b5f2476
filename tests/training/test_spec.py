"""The checks and the records before any worker starts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, ResumeMismatchError
from gmd_ray.training import finetuned_path
from gmd_ray.training.data.datasets import TargetPairs
from gmd_ray.training.resume import check_settings, refuse_begun
from gmd_ray.training.run_files import read_curve
from gmd_ray.training.spec import make_spec
from tests import PATIENCE_S
from tests.training.toys import make_config, pair_row, write_store, write_student


def test_accepted_view_at_the_threshold(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    target = make_spec(cfg, "adapted", None).target
    assert target is not None
    assert target.ids == tuple(f"{i:03d}.png" for i in range(1, 8))
    assert not target.median
    control = make_spec(cfg, "median", None).target
    assert control == dataclasses.replace(target, median=True)


def test_lower_is_better_is_read_from_the_manifest(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    manifest = tmp_path / "run" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"higher_is_better": False}))
    target = make_spec(cfg, "adapted", None).target
    assert target is not None
    assert target.ids == ("000.png", "001.png")


def test_images_that_have_left_the_inputs_are_left_out(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    before = make_spec(cfg, "adapted", None).target
    manifest = tmp_path / "run" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"stranger_ids": ["002.png", "005.png"]}))
    target = make_spec(cfg, "adapted", None).target
    assert target is not None
    assert before is not None
    assert target.ids == ("001.png", "003.png", "004.png", "006.png", "007.png")
    assert target.digest != before.digest
    pairs = TargetPairs(target, scale=1, patch=12, flip=False)
    for index in range(len(target.ids)):
        pairs.crop(index, 0, np.random.default_rng(0))


def test_no_accepted_pairs(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    cfg.scorer.threshold = 100.0
    with pytest.raises(DataError, match=r"no accepted pairs at threshold 100 .*lower scorer\.threshold") as caught:
        make_spec(cfg, "adapted", None)
    assert "\n" not in str(caught.value)


def test_unfinished_pair_store(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    (tmp_path / "run" / "pairs" / "manifest.json").unlink()
    with pytest.raises(DataError, match="run generate"):
        make_spec(cfg, "adapted", None)


def _set(section: str, **values: Any) -> Callable[[Config], None]:
    def change(cfg: Config) -> None:
        for key, value in values.items():
            setattr(getattr(cfg, section) if section else cfg, key, value)

    return change


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (_set("", seed=0), "adaptd", "did you mean 'adapted'"),
        (_set("student", path=None), "adapted", "student.path"),
        (_set("source", hq=None), "adapted", "source.hq"),
        (_set("source", lq=None), "adapted", "source.degradation"),
        (_set("training", num_workers=5), "adapted", "training.batch_size=4"),
        (_set("generation", keep_restored=False), "median", "generation.keep_restored=true"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, change: Callable[[Config], None], name: str, said: str) -> None:
    cfg = make_config(tmp_path)
    change(cfg)
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")) as caught:
        make_spec(cfg, name, None)
    assert "\n" not in str(caught.value)


def _begin(cfg: Config, name: str = "adapted") -> None:
    """Leave what a run leaves at its first checkpoint."""
    spec = make_spec(cfg, name, None)
    check_settings(spec)
    (Path(spec.directory) / "train").mkdir(exist_ok=True)
    (Path(spec.directory) / "train" / "checkpoint_manager_snapshot.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (_set("training", lr=0.5), "training.lr: 0.001 before, 0.5 now"),
        (_set("training", steps=13), "training.steps"),
        (_set("training", source_ratio=0.7), "training.source_ratio"),
        (_set("", seed=7), "seed"),
        (_set("source", gray=True), "source.gray"),
        (_set("source", limit=3), "source pairs"),
        (_set("scorer", threshold=3.0), "accepted pairs"),
    ],
)
def test_resume_with_other_settings_names_the_key(tmp_path: Path, change: Callable[[Config], None], key: str) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    change(cfg)
    with pytest.raises(ResumeMismatchError, match=key.replace(".", r"\.")) as caught:
        check_settings(make_spec(cfg, "adapted", None))
    assert str(caught.value).count(" before, ") == 1


def test_resume_with_another_student_or_other_pairs(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    write_student(tmp_path / "student.pth", seed=1)
    write_store(tmp_path / "run" / "pairs", [pair_row(i) for i in range(8)], per_part=2)
    check = make_spec(cfg, "adapted", None)
    with pytest.raises(ResumeMismatchError, match=r"student\.path") as caught:
        check_settings(check)
    assert "accepted pairs" not in str(caught.value)  # the same rows in other parts, less a failed one
    rows = [pair_row(i, teacher="another") for i in range(8)]
    write_store(tmp_path / "run" / "pairs", rows, per_part=2)
    with pytest.raises(ResumeMismatchError, match="accepted pairs"):
        check_settings(make_spec(cfg, "adapted", None))


def test_settings_that_leave_the_weights_alone_may_change(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    for change in (
        _set(
            "training",
            num_workers=2,
            cpus_per_worker=2.0,
            log_every=1,
            checkpoint_every=2,
            max_failures=9,
            max_preemption_failures=9,
            cache_gb=9,
        ),
        _set("student", tile=64),
        _set("", log_interval_s=3.0),
    ):
        change(cfg)
    check_settings(make_spec(cfg, "adapted", None))


def test_settings_of_a_run_without_checkpoint_are_forgotten(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    spec = make_spec(cfg, "adapted", None)
    check_settings(spec)
    curve = Path(spec.directory) / "curve.jsonl"
    curve.write_text('{"step": 1, "loss": 2.0}\n')
    check_settings(spec)
    assert curve.is_file()
    cfg.training.lr = 0.5
    check_settings(make_spec(cfg, "adapted", None))
    assert not curve.is_file()


def test_every_seed_that_is_asked_for_has_a_place_of_its_own(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    assert finetuned_path(cfg, "adapted") == str(tmp_path / "run" / "finetune" / "adapted" / "student.pth")
    assert finetuned_path(cfg, "adapted", 3) == str(tmp_path / "run" / "finetune" / "adapted-seed3" / "student.pth")
    assert make_spec(cfg, "adapted", 3).seed == 3


def _refusal(cfg: Config, name: str = "adapted") -> str:
    with pytest.raises(ResumeMismatchError) as caught:
        check_settings(make_spec(cfg, name, None))
    return str(caught.value)


def test_other_lq_files_are_noticed(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    cfg.source.lq = str((tmp_path / "source" / "lq").rename(tmp_path / "moved"))
    check_settings(make_spec(cfg, "adapted", None))
    for path in (tmp_path / "moved").iterdir():
        path.rename(path.with_name(f"{path.stem}x2.png"))
    cfg.source.lq_template = "{}x2"
    assert "source pairs: " in _refusal(cfg)


def test_other_ground_truth_is_noticed_wherever_it_lies(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    for folder in ("truth", "copy"):
        (tmp_path / folder).mkdir()
        for i in range(9):
            (tmp_path / folder / f"{i:03d}.png").write_bytes(bytes([i]))
    cfg.training.supervised_hq = str(tmp_path / "truth")
    _begin(cfg, "supervised")
    cfg.training.supervised_hq = str(tmp_path / "copy")
    check_settings(make_spec(cfg, "supervised", None))
    (tmp_path / "copy" / "000.png").write_bytes(b"of a photo that was not accepted")
    check_settings(make_spec(cfg, "supervised", None))
    (tmp_path / "copy" / "004.png").write_bytes(bytes([5]))
    assert "ground truth: " in _refusal(cfg, "supervised")


def test_torn_line_of_a_curve_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"died": 0, "error": "x"}\n{"step": 4, "lo')
    assert [point["step"] for point in read_curve(path)] == [2]
    assert path.read_text().endswith('"x"}\n')


def test_driver_and_controller_import_no_torch() -> None:
    code = "import sys, gmd_ray.training, gmd_ray.training.spec; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def _everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_settings_are_refused_without_a_trace(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    refuse_begun(cfg, "adapted")
    assert not (tmp_path / "run" / "finetune").exists()
    _begin(cfg)
    before = _everything_in(tmp_path / "run")
    refuse_begun(cfg, "adapted")
    refuse_begun(cfg, "source_only")  # not begun
    cfg.training.lr = 0.5
    with pytest.raises(ResumeMismatchError, match=r"training\.lr"):
        refuse_begun(cfg, "adapted")
    assert _everything_in(tmp_path / "run") == before


def test_ahead_of_generate_the_accepted_pairs_are_not_compared(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    _begin(cfg)
    write_store(tmp_path / "run" / "pairs", [pair_row(i, teacher="another") for i in range(8)])
    with pytest.raises(ResumeMismatchError, match="accepted pairs"):
        refuse_begun(cfg, "adapted")
    (tmp_path / "run" / "pairs" / "manifest.json").unlink()  # a store that is being written
    refuse_begun(cfg, "adapted", generated=False)
    cfg.training.lr = 0.5
    with pytest.raises(ResumeMismatchError, match=r"training\.lr") as caught:
        refuse_begun(cfg, "adapted", generated=False)
    assert "accepted pairs" not in str(caught.value)


def test_a_finished_finetune_without_its_checkpoints_still_has_its_settings(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    spec = make_spec(cfg, "adapted", None)
    check_settings(spec)
    Path(spec.directory, "finetuned.json").write_text("{}")
    cfg.training.lr = 0.5
    assert "training.lr: 0.001 before, 0.5 now" in _refusal(cfg)
    Path(spec.directory, "settings.json").unlink()
    with pytest.raises(DataError, match=r"settings\.json: no such file; restore it, or remove"):
        check_settings(make_spec(cfg, "adapted", None))


def test_the_student_keeps_the_whole_ending_of_its_file() -> None:
    for name, ending in (("a.b.pth", ".pth"), ("model_best.pth.tar", ".pth.tar"), ("x.safetensors", ".safetensors")):
        cfg = Config(out="runs/x")
        cfg.student.path = f"/models/{name}"
        assert Path(finetuned_path(cfg, "adapted")).name == f"student{ending}"
