"""The workers' loop, run in this process (Ray Train's local mode) against a plain torch loop."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor, nn

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, GmdError, ModelError
from gmd_ray.images.files.encode import decode_png, encode_png, to_tensor
from gmd_ray.students import Student, load_student
from gmd_ray.students.latent import presets as latent_presets
from gmd_ray.training.data.batches import Batch
from gmd_ray.training.spec import TrainingSpec, make_spec
from gmd_ray.training.worker.loop import train
from tests.training.oracle import batches_of, plain_training
from tests.training.toys import make_config, picture


def _train_here(cfg: Config, name: str = "adapted") -> tuple[TrainingSpec, Any]:
    spec = make_spec(cfg, name, None)
    trainer = TorchTrainer(train, train_loop_config={"spec": spec}, scaling_config=ScalingConfig(num_workers=0))
    return spec, trainer.fit().return_value


def test_loop_is_plain_training_and_exports_the_average(tmp_path: Path) -> None:
    spec, outcome = _train_here(make_config(tmp_path, clip_grad_norm=0.05))
    assert outcome is None
    before, after = (torch.load(path, weights_only=True) for path in (spec.cfg.student.path, spec.student))
    expected = plain_training(spec)
    assert after.keys() == before.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], rtol=0, atol=1e-6)
    assert max(float((after[key] - before[key]).abs().max()) for key in before) > 1e-4


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The figures that the loop reports, as they come."""
    figures: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.train.report", lambda metrics, *_, **__: figures.append(dict(metrics)))
    return figures


def _assert_same_student(spec: TrainingSpec, expected: dict[str, Tensor], atol: float) -> None:
    after = torch.load(spec.student, weights_only=True)
    assert after.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=atol)


def test_ratio_as_a_weight_of_the_loss(tmp_path: Path) -> None:
    spec, outcome = _train_here(make_config(tmp_path, mixing="loss", source_ratio=0.9, loss="l2"))
    assert outcome is None
    expected = plain_training(spec)
    _assert_same_student(spec, expected, 1e-6)
    other = dataclasses.replace(spec.cfg.training, source_ratio=0.5)
    plain = plain_training(dataclasses.replace(spec, cfg=dataclasses.replace(spec.cfg, training=other)))
    assert max(float((plain[key] - expected[key]).abs().max()) for key in plain) > 1e-4


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    spec, outcome = _train_here(make_config(tmp_path, batch_size=5, accumulate=accumulate, loss="l2"))
    assert outcome is None
    _assert_same_student(spec, plain_training(spec), 1e-6)


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latent") / "tiny"
    latent_presets.new_latent_student("ldm-tiny", path)
    return path


def test_a_student_that_draws_noise_draws_the_same_in_any_part(
    tmp_path: Path, latent: Path, reports: list[dict[str, Any]]
) -> None:
    for accumulate in (1, 2):
        cfg = make_config(tmp_path / str(accumulate), patch=16, steps=3, log_every=1, accumulate=accumulate)
        cfg.student.path = str(latent)
        spec, outcome = _train_here(cfg)
        assert outcome is None
        assert Path(spec.student, "model_index.json").is_file()
    whole, parts = reports[:3], reports[3:]
    assert len(parts) == 3
    for a, b in zip(whole, parts, strict=True):
        names = ("loss", "loss_source", "loss_target", "grad_norm")
        assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names}, rel=1e-4)


class _NoKeys:
    """A team's student whose loss was written before there were keys."""

    def __init__(self, student: Student) -> None:
        self.scale, self.module, self.fingerprint = student.scale, student.module, student.fingerprint
        self.restore, self.save, self._student = student.restore, student.save, student

    def training_loss(self, lq: Tensor, hq: Tensor, forward: nn.Module | None = None, *, reduce: bool = True) -> Any:
        return self._student.training_loss(lq, hq, forward, reduce=reduce)


def test_a_student_that_takes_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.training.worker.loop.load_student", lambda *a, **k: _NoKeys(load_student(*a, **k)))
    spec, outcome = _train_here(make_config(tmp_path))
    assert outcome is None
    _assert_same_student(spec, plain_training(spec), 1e-6)


def test_losses_of_source_and_target_are_told_apart(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    spec, _ = _train_here(make_config(tmp_path, steps=3, log_every=1, lr=1e-12, accumulate=2))
    module, batches = load_student(spec.cfg.student).module, batches_of(spec)
    assert [figures["step"] for figures in reports] == [1, 2, 3]
    for step, figures in enumerate(reports):
        lq, hq, source, _ = batches(step)
        with torch.no_grad():
            error = (module(lq) - hq).abs().flatten(1).mean(1)
        assert figures["loss_source"] == pytest.approx(float(error[source].mean()), rel=1e-5)
        assert figures["loss_target"] == pytest.approx(float(error[~source].mean()), rel=1e-5)
        assert figures["loss"] == pytest.approx(float(error.mean()), rel=1e-5)
    assert reports[0]["loss_source"] != pytest.approx(reports[0]["loss_target"], rel=1e-3)


def test_one_stream_alone_has_one_loss(tmp_path: Path, reports: list[dict[str, Any]]) -> None:
    _train_here(make_config(tmp_path, steps=2), "source_only")
    assert "loss_source" in reports[-1]
    assert "loss_target" not in reports[-1]


def test_validation_is_the_averaged_student_on_whole_held_out_images(
    tmp_path: Path, reports: list[dict[str, Any]]
) -> None:
    cfg = make_config(tmp_path, validate_every=5, validation_images=3)
    cfg.evaluation.source_hq, cfg.evaluation.source_lq = cfg.source.hq, cfg.source.lq
    spec, outcome = _train_here(cfg)
    assert outcome is None
    scores = {figures["step"]: figures["val_psnr"] for figures in reports if "val_psnr" in figures}
    assert list(scores) == [5, 10, 12]
    _assert_same_student(spec, plain_training(spec), 1e-6)  # looking on changes nothing
    student = load_student(dataclasses.replace(spec.cfg.student, path=spec.student))
    psnr = []
    for pair in spec.validation:
        lq, hq = (to_tensor([decode_png(Path(str(path)).read_bytes())]) for path in (pair.lq, pair.hq))
        psnr.append(-10 * math.log10(float((student.restore(lq) - hq).square().mean())))
    assert len(psnr) == 3
    assert scores[12] == pytest.approx(sum(psnr) / 3, abs=1e-3)


def test_supervised_learns_the_ground_truth(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    for i in range(9):
        (truth / f"{i:03d}.png").write_bytes(encode_png(picture(100 + i)))  # the pseudo-targets of the toy store
    cfg = make_config(tmp_path, supervised_hq=str(truth))
    spec, outcome = _train_here(cfg, "supervised")
    assert outcome is None
    _assert_same_student(spec, plain_training(make_spec(cfg, "adapted", None)), 1e-6)
    (truth / "004.png").unlink()
    with pytest.raises(DataError, match=r"1 of 7 photos have no ground truth there \(004\.png\)"):
        make_spec(cfg, "supervised", None)


def test_compiled_student_is_trained_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_ = torch.compile

    def eager(module: nn.Module) -> Any:
        compiled.append(module)
        return compile_(module, backend="eager")  # the real front end; the kernels are not what is ours

    monkeypatch.setattr("torch.compile", eager)
    spec, outcome = _train_here(make_config(tmp_path, compile=True, steps=4))
    assert outcome is None
    assert len(compiled) == 1
    _assert_same_student(spec, plain_training(spec), 1e-6)


@pytest.mark.gpu
def test_a_step_in_bfloat16(tmp_path: Path, reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cuda"))  # local mode takes the CPU
    for bf16 in (False, True):
        cfg = make_config(tmp_path / str(bf16), steps=1, log_every=1, bf16=bf16)
        spec, outcome = _train_here(cfg)
        assert outcome is None
        after = torch.load(spec.student, weights_only=True)
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in after.values())
    full, half = reports
    assert half["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert half["loss"] != full["loss"]


def test_memory_layout_changes_nothing_but_time(tmp_path: Path) -> None:
    spec, outcome = _train_here(make_config(tmp_path, channels_last=True))
    assert outcome is None
    after, expected = torch.load(spec.student, weights_only=True), plain_training(spec)
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5)
        assert after[key].is_contiguous()


def test_parts_of_uneven_ranks_add_up_to_the_gradient_of_the_global_batch(tmp_path: Path) -> None:
    spec = make_spec(make_config(tmp_path, batch_size=5), "adapted", None)
    student = load_student(spec.cfg.student)

    def gradient(batch: Batch, weight: float) -> list[Tensor]:
        student.module.zero_grad()
        loss, _ = student.training_loss(batch.lq, batch.hq)
        (loss * weight).backward()
        return [p.grad.clone() for p in student.module.parameters() if p.grad is not None]

    whole = gradient(batches_of(spec)(1), 1.0)
    parts = []
    for rank in range(2):
        batch = batches_of(spec, rank, 2)(1)
        assert len(batch.lq) == (3, 2)[rank]
        parts.append(gradient(batch, 2 * len(batch.lq) / 5))
    for one, a, b in zip(whole, *parts, strict=True):
        torch.testing.assert_close((a + b) / 2, one, rtol=1e-4, atol=1e-7)


def test_source_only_needs_no_pair_store(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, steps=2)
    spec, outcome = _train_here(dataclasses.replace(cfg, out=str(tmp_path / "elsewhere")), "source_only")
    assert outcome is None
    assert spec.target is None
    assert Path(spec.student) == tmp_path / "elsewhere" / "finetune" / "source_only" / "student.pth"
    assert Path(spec.student).is_file()


def test_ratio_zero_needs_no_source(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, steps=2, source_ratio=0.0)
    cfg.source.hq = None
    spec, outcome = _train_here(cfg)
    assert outcome is None
    assert spec.source == ()
    assert Path(spec.student).is_file()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_that_diverges_ends_with_the_step(tmp_path: Path, loss: str) -> None:
    spec, outcome = _train_here(make_config(tmp_path, lr=1e30, warmup_steps=0, loss=loss))
    assert isinstance(outcome, GmdError)
    assert str(outcome).startswith("fine-tune adapted: loss or gradient is not finite at step 2")
    assert not Path(spec.student).exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named_before_the_first_step(tmp_path: Path, value: float) -> None:
    cfg = make_config(tmp_path)
    path = tmp_path / "student.pth"
    weights = torch.load(path, weights_only=True)
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    torch.save(weights, path)
    spec, outcome = _train_here(cfg)
    assert isinstance(outcome, ModelError)
    assert f"{path}: {name} holds NaN or infinity" in str(outcome)
    assert "training.lr" not in str(outcome)
    assert not Path(spec.student).exists()


def test_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    (tmp_path / "source" / "lq" / "4.png").write_bytes(b"no image")
    _, outcome = _train_here(cfg)
    assert isinstance(outcome, DataError)
    assert "4.png" in str(outcome)


def test_setting_that_only_the_worker_can_refuse(tmp_path: Path) -> None:
    cfg = make_config(tmp_path)
    cfg.source.lq, cfg.source.degradation, cfg.source.degradation_args = None, "none", {"scale": 2}
    _, outcome = _train_here(cfg)
    assert isinstance(outcome, ConfigError)
    assert "source.degradation_args.scale=1" in str(outcome)
