"""Settings that the store or a begun fine-tune refuses: told without Ray, and with everything as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.store import PairStore
from gmd_ray.planning import Preflight
from gmd_ray.training.resume import check_settings
from gmd_ray.training.spec import make_spec
from tests.generation.shelf import fill, ok_row
from tests.planning.conftest import STUDENT, config, settings
from tests.planning.test_preflight import trace


def finished_store(cfg: Config, **models: str) -> PairStore:
    store = PairStore(f"{cfg.out}/pairs")
    fill(store, [[ok_row(f"{i}.jpg", 9.0, **models) for i in range(4)]])
    values = run_settings.relevant(cfg)
    facts = {"scorer": {"fingerprint": models.get("scorer", "n"), "higher_is_better": True}}
    places = run_settings.places(cfg)
    store.write("settings.json", {"settings": values, "places": places, "models": facts, "inputs": {}})
    counts = {"inputs": 4, "accepted": 4, "rejected": 0, "failed": 0, "threshold": 5, "higher_is_better": True}
    store.write("manifest.json", {**counts, "stranger_ids": [], "settings": values})
    return store


def begun_finetune(cfg: Config) -> None:
    plan = make_spec(cfg, "adapted", None)
    check_settings(plan)
    Path(plan.directory, "finetuned.json").write_text(json.dumps({"path": plan.student}))


def errors(cfg: Config, verb: str) -> list[str]:
    return [finding.message for finding in Preflight(cfg, verb).run().of("error") if finding.code == "settings"]


def test_a_store_of_other_settings(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    finished_store(cfg)
    for verb in ("adapt", "generate"):
        assert errors(cfg, verb) == []
    cfg.teacher.steps = 3
    for verb in ("adapt", "generate"):
        [line] = errors(cfg, verb)
        assert "was made with other settings: teacher.steps: 25 -> 3; give another out=" in line
    assert errors(cfg, "evaluate") == []


def test_a_store_of_another_student_or_scorer(tmp_path: Path) -> None:
    """Compared by what is in the files, not by where they lie."""
    from gmd_ray.quality import load_scorer
    from gmd_ray.quality.nima import NimaScorer
    from gmd_ray.students import load_student
    from gmd_ray.students.fresh import new_checkpoint

    cfg = config(tmp_path)
    models = {"student": load_student(cfg.student).fingerprint, "scorer": load_scorer(cfg.scorer).fingerprint}
    finished_store(cfg, **models)
    shutil.copy(STUDENT, tmp_path / "moved.safetensors")
    cfg.student.path = str(tmp_path / "moved.safetensors")
    assert errors(cfg, "generate") == []
    new_checkpoint("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 4}, 0, tmp_path / "other.pth")
    cfg.student.path = str(tmp_path / "other.pth")
    NimaScorer((4, 4, 4)).save_pretrained(tmp_path / "scorer")
    cfg.scorer.path = str(tmp_path / "scorer")
    student, scorer = errors(cfg, "generate")
    assert "was made with another student: student.path now gives model" in student
    assert f"its rows are of {models['student']}; give another out=, or the old model" in student
    assert f"its rows are of {models['scorer']}" in scorer


def test_a_finetune_of_other_settings(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    finished_store(cfg)
    begun_finetune(cfg)
    for verb in ("adapt", "finetune"):
        assert errors(cfg, verb) == []
    cfg.training.lr = 0.5
    for verb in ("adapt", "finetune"):
        [line] = errors(cfg, verb)
        assert "training.lr: 2e-05 before, 0.5 now" in line
    assert errors(cfg, "generate") == []


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    finished_store(cfg)
    next(Path(cfg.out, "pairs", "rows").glob("part-*")).write_bytes(b"torn")
    [line] = errors(cfg, "generate")
    assert "a part file cannot be read" in line


@pytest.mark.parametrize(
    ("verb", "mistake"),
    [("generate", "teacher.steps=3"), ("adapt", "training.lr=0.5"), ("finetune", "training.lr=0.5")],
)
def test_a_mistaken_command_over_a_finished_run_changes_nothing(
    verb: str, mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("adapt", "ray_utils.session"):
        monkeypatch.setattr(f"gmd_ray.{room}.ray_session", lambda cfg: pytest.fail("Ray was started"))
    cfg = config(tmp_path)
    finished_store(cfg)
    begun_finetune(cfg)
    (tmp_path / "run" / "mlflow.db").write_bytes(b"a finished run's record")
    args = settings(tmp_path, mistake)
    before = trace(tmp_path)
    assert main([verb, *args]) == 2
    assert mistake.partition("=")[0] in capsys.readouterr().err
    assert trace(tmp_path) == before
