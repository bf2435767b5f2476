"""The trainers of the photographs' models against the scripts that made the shipped ones, and the shipped models."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import InjectionConfig, ScorerConfig, StudentConfig, TeacherConfig
from gmd_ray.demo import scorer_training
from gmd_ray.demo import train_models as models
from gmd_ray.demo.flow_matching import PROMPTS, fit_codec, prompt_table
from gmd_ray.demo.networks import build_transformer
from gmd_ray.demo.photos.crops import LabelledCrops
from gmd_ray.demo.photos.train_scorer import PhotoScorerRecipe, train_scorer
from gmd_ray.demo.photos.train_student import PhotoStudentRecipe, fit_student, train_student
from gmd_ray.demo.photos.train_teacher import PhotoTeacherRecipe, mean_losses, run_steps, schedule, train_teacher
from gmd_ray.quality import load_scorer
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher
from tests.demo.photos import original_scripts as original

WEIGHTS = Path(models.__file__).parent / "photos" / "weights"
CPU = torch.device("cpu")
TINY = PhotoTeacherRecipe(
    steps=original.TEACHER_STEPS, batch=8, single_blocks=1, heads=1, head_dim=16, muon_lr=0.2, adamw_lr=0.15
)
"""The options `original_scripts.TEACHER_OPTIONS`."""

# `python -m tests.demo.photos.original_scripts SHARED EMPTY_FOLDER`, torch 2.13 on x86-64. The scorer's come from the
# same file with `scorer` as third argument and the package of commit 3184d7a.
TEACHER_LOSSES = [2.0653746, 2.0806923, 1.9705911, 1.8785253, 1.8864693, 1.8216285]
TEACHER_CODEC = (0.0066, 2.0268)
TEACHER_NORMS = {
    "x_embedder.weight": 1.6861457523,
    "transformer_blocks.0.attn.to_q.weight": 0.9142149636,
    "transformer_blocks.0.norm1.linear.bias": 0.5897286457,
}
STUDENT_LOSSES = [0.10277098, 0.09151931, 0.09695302, 0.08916929, 0.07421741]
STUDENT_NORMS = {"model.0.weight": 4.0797362078, "model.0.bias": 0.7401256495, "model.18.bias": 0.0653249730}

SCORER_LOSSES = [0.28146154, 0.30408210, 0.27362755, 0.25761816]
SCORER_CORRELATION = 0.3694383


@pytest.fixture(scope="module")
def shared_scripts(shared_data: Path) -> Path:
    """The folder of the scripts; not part of the repository, so not everywhere."""
    if not (shared_data.parent / "photo_world/train_teacher_gpu.py").is_file():
        pytest.skip(f"no scripts at {shared_data.parent}")
    return shared_data.parent


def train_tiny() -> tuple[torch.nn.Module, list[float]]:
    """Train as `original_scripts.run_teacher_script` does."""
    tiles = original.tiles()[original.HELD_OUT :]
    model = build_transformer(TINY.double_blocks, TINY.single_blocks, TINY.heads, TINY.head_dim)
    original.start_weights(model)
    generator = torch.Generator().manual_seed(7)
    return run_steps(
        model, torch.from_numpy(tiles), TINY, fit_codec(tiles), prompt_table(1), generator, half_precision=False
    )


def teacher_at(folder: Path) -> TeacherConfig:
    injection = InjectionConfig(blocks="all", tokens="image", steps=0)
    return TeacherConfig(path=str(folder), steps=1, strength=0.3, prompt="hq", injection=injection)


def norms(state: dict[str, torch.Tensor], names: dict[str, float]) -> dict[str, float]:
    return {name: float(state[name].double().norm()) for name in names}


def test_teacher_loses_and_learns_as_the_script_did() -> None:
    codec = fit_codec(original.tiles()[original.HELD_OUT :])
    assert (codec.shift, codec.scale) == TEACHER_CODEC
    average, losses = train_tiny()
    np.testing.assert_allclose(losses, TEACHER_LOSSES, rtol=1e-3)
    assert norms(average.state_dict(), TEACHER_NORMS) == pytest.approx(TEACHER_NORMS, rel=1e-3)


def test_student_loses_and_learns_as_the_script_did() -> None:
    model, losses = fit_student(original.photographs(), PhotoStudentRecipe(steps=original.STUDENT_STEPS))
    np.testing.assert_allclose(losses, STUDENT_LOSSES, rtol=1e-3)
    assert norms(model.state_dict(), STUDENT_NORMS) == pytest.approx(STUDENT_NORMS, rel=1e-3)


def test_scorer_loses_and_learns_as_the_script_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    plain = scorer_training.emd_loss

    def record(*args: torch.Tensor) -> torch.Tensor:
        loss = plain(*args)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(scorer_training, "emd_loss", record)
    figures = train_scorer(tmp_path, original.tiles(), PhotoScorerRecipe(steps=len(SCORER_LOSSES)))
    np.testing.assert_allclose(losses, SCORER_LOSSES, rtol=1e-3)
    assert figures["held_out_correlation"] == pytest.approx(SCORER_CORRELATION, abs=5e-3)
    assert load_scorer(ScorerConfig(path=str(tmp_path))).higher_is_better


def test_teacher_beside_the_script(shared_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = shared_scripts / "photo_world/train_teacher_gpu.py"
    theirs = original.run_teacher_script(script, tmp_path, monkeypatch)
    average, losses = train_tiny()
    np.testing.assert_allclose(losses, theirs.losses, rtol=1e-5)
    start = build_transformer(TINY.double_blocks, TINY.single_blocks, TINY.heads, TINY.head_dim)
    original.start_weights(start)
    ours, before = average.state_dict(), start.state_dict()
    assert ours.keys() == theirs.average.keys()
    for name, weight in theirs.average.items():
        # Muon orthogonalises in bfloat16, so that the last bit of a gradient can round to another weight.
        assert (ours[name] - weight).norm() < 0.05 * (weight - before[name]).norm(), name
    table = prompt_table(1)
    assert all(torch.equal(table[name], row) for name, row in theirs.table.items())


def test_the_network_in_half_precision_is_the_scripts(shared_scripts: Path) -> None:
    """Under autocast to bfloat16, as on a GPU, here on the CPU."""
    module = original.load_script(shared_scripts / "photo_world/train_teacher_gpu.py")
    theirs, ours = module.Flux(1, 2, 2, 16), build_transformer(1, 2, 2, 16)
    for model in (theirs, ours):
        original.start_weights(model)
    generator = torch.Generator().manual_seed(3)
    z, embeds, pooled = (torch.randn(2, *s, generator=generator) for s in ((16, 48), (4, 32), (32,)))
    t = torch.tensor([0.1, 0.8])
    ids = module.Flux.positions(theirs, 4, 4, "cpu")
    grid = torch.stack([torch.zeros(16), torch.arange(4.0).repeat_interleave(4), torch.arange(4.0).repeat(4)], 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a = theirs(z, t, embeds, pooled, *ids).float()
        b = ours(z, embeds, pooled, t, img_ids=grid, txt_ids=torch.zeros(4, 3)).sample.float()
    assert (a - b).norm() < 0.02 * a.norm()


def test_student_beside_the_script(shared_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = original.run_student_script(shared_scripts / "photo_demo/train_student.py", tmp_path, monkeypatch)
    model, losses = fit_student(original.photographs(), PhotoStudentRecipe(steps=original.STUDENT_STEPS))
    np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-6)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, theirs["ema"][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains(tmp_path: Path) -> None:
    recipe = replace(TINY, steps=20, heads=2, head_dim=32)
    figures = train_teacher(tmp_path, original.tiles(), recipe, torch.device("cuda"))
    assert np.isfinite(figures["losses"]).all()


def test_rates_rise_hold_and_fall_to_nothing() -> None:
    recipe = PhotoTeacherRecipe(steps=1000)
    factors = [schedule(recipe, step) for step in (0, 149, 450, 725, 999)]
    np.testing.assert_allclose(factors, [1 / 150, 1, 1, 0.5, 0.001 / 0.55])


def test_the_log_has_whole_hundreds() -> None:
    assert mean_losses([1.0] * 100 + [3.0] * 100 + [9.0] * 99) == [1, 3]
    assert mean_losses([1.0, 2.0]) == [1.5]


def test_batches_hold_clean_degraded_and_null_in_their_shares() -> None:
    crops = LabelledCrops(torch.from_numpy(original.tiles(4)), 64, torch.Generator().manual_seed(1))
    pixels, labels = crops.batch(400)
    assert pixels.shape == (400, 3, 64, 64)
    assert -1 <= pixels.min() < pixels.max() <= 1
    shares = np.bincount(labels.numpy(), minlength=len(PROMPTS)) / 400
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.4], atol=0.07)


def test_what_is_written_loads(tmp_path: Path) -> None:
    """Each model in the class that a run uses, and the same bytes from the same seed."""
    tiles = original.tiles()
    tiny = replace(TINY, steps=2)
    for name in ("a", "b"):
        figures = train_teacher(tmp_path / name / "teacher", tiles, tiny, CPU)
        train_student(
            tmp_path / name / "student.safetensors", original.photographs(), PhotoStudentRecipe(steps=2, batch=2)
        )
    written = [sorted((tmp_path / name).rglob("*.safetensors")) for name in ("a", "b")]
    assert len(written[0]) == 3
    assert [f.read_bytes() for f in written[0]] == [f.read_bytes() for f in written[1]]
    assert figures["images"] == 16
    x = torch.rand(1, 3, 64, 64)
    assert load_teacher(teacher_at(tmp_path / "a/teacher")).project(x, ["a"]).shape == x.shape
    assert load_student(StudentConfig(path=str(tmp_path / "a/student.safetensors"))).restore(x).shape == x.shape


def test_shipped_models_are_those_of_the_recipes() -> None:
    """The recipes beside the weights are those in the code, and the weights load in the classes that a run uses."""
    record = json.loads((WEIGHTS / models.FIGURES).read_text())
    recipes = {"teacher": PhotoTeacherRecipe(), "student": PhotoStudentRecipe(), "scorer": PhotoScorerRecipe()}
    assert {name: entry["recipe"] for name, entry in record.items()} == {n: asdict(r) for n, r in recipes.items()}
    teacher, student = record["teacher"]["figures"], record["student"]["figures"]
    assert teacher["images"] == recipes["teacher"].steps * recipes["teacher"].batch
    assert student["images"] == recipes["student"].steps * recipes["student"].batch
    assert len(teacher["losses"]) == recipes["teacher"].steps // 100
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*")) < 36e6
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert load_teacher(teacher_at(WEIGHTS / "teacher")).project(x, ["a"]).isfinite().all()
    assert load_student(StudentConfig(path=str(WEIGHTS / "student.safetensors"))).restore(x).isfinite().all()
    scores = load_scorer(ScorerConfig(path=str(WEIGHTS / "scorer"))).score(x)
    assert 1 <= float(scores) <= 10
