"""Rows beside the run's students: other checkpoints, ready outputs, teachers; the truth and the untouched photo."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.evaluation import evaluate
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.methods import plan_methods
from gmd_ray.evaluation.summaries import markdown
from gmd_ray.images.files.encode import encode_png
from tests.evaluation.conftest import draw, save_student
from tests.evaluation.test_evaluate import judged, levels, psnr, read, restored
from tests.teachers.conftest import make_flux


def ready(run: Config, folder: Path, names: str = "{}") -> np.ndarray:
    """Outputs of another program: the truth, a little darker; returns the first one."""
    folder.mkdir(parents=True)
    for path in sorted(Path(str(run.evaluation.target_hq)).iterdir()):
        image = read(path) * 0.9
        (folder / f"{names.format(path.stem)}.png").write_bytes(encode_png(image))
    return read(next(iter(sorted(folder.iterdir()))))


def test_another_checkpoint_and_ready_outputs_are_rows_like_any_student(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    other = save_student(tmp_path / "other.safetensors", 5, 0.6)
    first = ready(run, tmp_path / "outputs")
    run.evaluation.methods = {"Restormer": f"model:{other}", "Hi-Diff": f"folder:{tmp_path / 'outputs'}"}
    found = judged(run, students)
    assert found.students == ("lq", "baseline", "adapted", "Restormer", "Hi-Diff")
    lq, hq = (read(tmp_path / "target" / side / "00.png") for side in ("lq", "hq"))
    values = {name: found.values(name, "target", "psnr")["00.png"] for name in found.students}
    assert values["Restormer"] == pytest.approx(psnr(restored(run, other, lq), hq), abs=1e-6)
    assert values["Hi-Diff"] == pytest.approx(psnr(first, hq), abs=1e-6)
    assert values["lq"] == pytest.approx(psnr(lq, hq), abs=1e-6)
    # The outputs are of target photos: on the source the row is left out, and nothing has failed.
    assert found.values("Hi-Diff", "source", "psnr") == {}
    assert found.failures("source") == found.failures("target") == []
    target, source = markdown(found).split("## source")
    assert "| Hi-Diff |" in target
    assert "| Hi-Diff |" not in source
    assert "| Restormer |" in source
    # A folder's cost is unknown, and left out.
    assert found.costs["target"]["Restormer"].parameters == found.costs["target"]["baseline"].parameters
    assert "Hi-Diff" not in found.costs["target"]
    assert found.picture("target", "00.png", "Hi-Diff") is not None


def test_outputs_for_both_test_sets_lie_in_folders_of_their_names(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    for dataset in ("target", "source"):
        shutil.copytree(tmp_path / dataset / "hq", tmp_path / "outputs" / dataset)
    run.evaluation.methods = {"perfect": f"folder:{tmp_path / 'outputs'}"}
    run.evaluation.source_lq, run.source.degradation = None, "noise25"  # made from the truth, so that it has no name
    found = judged(run, students)
    for dataset, count in (("target", 6), ("source", 4)):
        assert list(found.values("perfect", dataset, "psnr").values()) == [100.0] * count


def test_outputs_may_bear_the_names_of_their_inputs(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    draw(tmp_path / "named", "lq", "hq", 3)
    for path in list((tmp_path / "named" / "lq").iterdir()):
        path.rename(path.with_name(f"{path.stem}x1.png"))
    shutil.copytree(tmp_path / "named" / "lq", tmp_path / "outputs")
    e = run.evaluation
    e.target_lq, e.target_hq, e.target_template = str(tmp_path / "named/lq"), str(tmp_path / "named/hq"), "{}x1"
    e.methods = {"copy": f"folder:{tmp_path / 'outputs'}"}
    found = judged(run, students)
    assert found.values("copy", "target", "psnr") == found.values("lq", "target", "psnr")


def test_a_missing_output_is_one_line_before_anything_starts(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    ready(run, tmp_path / "outputs")
    (tmp_path / "outputs" / "03.png").unlink()
    run.evaluation.methods = {"Hi-Diff": f"folder:{tmp_path / 'outputs'}"}
    with pytest.raises(DataError) as caught:
        evaluate(run, students)
    assert str(caught.value).startswith("evaluation.methods.Hi-Diff=folder:")
    assert "1 of 6 target photos have no output of the same name there (03.png)" in str(caught.value)


class Darken:
    """A teacher plugin."""

    fingerprint = "darken"

    def __init__(self, cfg: object) -> None: ...

    def project(self, images: torch.Tensor, ids: list[str]) -> torch.Tensor:
        return images * 0.75


def test_a_teacher_behind_the_baseline_has_the_parameters_and_the_time_of_both(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    teacher = make_flux(tmp_path / "flux", autoencoder=False)
    run.teacher.method, run.teacher.steps, run.teacher.injection.steps = "sdedit", 1, 0
    run.evaluation.limit, run.evaluation.methods = 2, {"SDEdit": f"online:{teacher}"}
    found = judged(run, students)
    assert found.students == ("lq", "baseline", "adapted", "SDEdit")
    costs = found.costs["target"]
    from diffusers import FluxTransformer2DModel

    network = FluxTransformer2DModel.from_pretrained(teacher / "transformer")
    own = sum(parameter.numel() for parameter in network.parameters())
    assert costs["SDEdit"].parameters == (costs["baseline"].parameters or 0) + own
    assert costs["SDEdit"].seconds > costs["baseline"].seconds
    assert found.values("SDEdit", "target", "psnr") != found.values("baseline", "target", "psnr")


def test_presets_and_directories_name_teachers(run: Config, tmp_path: Path) -> None:
    run.teacher.path, run.teacher.true_cfg = "somewhere/flux", 1.5
    (tmp_path / "kontext").mkdir()
    run.evaluation.methods = {
        "a": "online:sdedit",
        "b": f"online:kontext@{tmp_path / 'kontext'}",
        "c": f"online:{tmp_path / 'kontext'}",
    }
    _, a, b, c = plan_methods(run, {"baseline": "student.pth"})
    assert {method.of for method in (a, b, c)} == {"baseline"}
    assert a.teacher is not None
    assert b.teacher is not None
    assert c.teacher is not None
    assert (a.teacher.method, a.teacher.path, a.teacher.true_cfg) == ("sdedit", "somewhere/flux", 1.5)
    assert (b.teacher.method, b.teacher.path) == ("kontext", str(tmp_path / "kontext"))
    assert (c.teacher.method, c.teacher.path) == ("inversion", str(tmp_path / "kontext"))
    assert run.teacher.method == "inversion", "the run's own settings stay"


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"adapted": "model:x.pth"}, "evaluation.methods.adapted: the table has a row of this name already"),
        ({"lq": "model:x.pth"}, "evaluation.methods.lq: the table has a row"),
        ({"other": "model:/nowhere/x.pth"}, "no such file or folder"),
        ({"other": "folder:/nowhere"}, "no such file or folder"),
        ({"other": "online:sdedti"}, "did you mean 'sdedit'"),
        ({"other": "online:sdedit"}, "set teacher.path, or give online:sdedit@DIRECTORY"),
    ],
)
def test_methods_that_cannot_be(run: Config, students: dict[str, str], methods: dict[str, str], message: str) -> None:
    run.evaluation.methods = methods
    with pytest.raises(ConfigError, match=message):
        plan_methods(run, students)


def test_settings_name_the_three_kinds() -> None:
    cfg = load_config(["evaluation.methods.Hi-Diff=folder:out", "evaluation.methods.v1.2=model:a.pth"])
    assert cfg.evaluation.methods == {"Hi-Diff": "folder:out", "v1.2": "model:a.pth"}
    for text in ("outputs", "images:x", "model:"):
        with pytest.raises(ConfigError, match=r"give model:\.\.\., folder:\.\.\., online:\.\.\."):
            load_config([f"evaluation.methods.a={text}"])


class Enlarge:
    """A student of scale 2 that repeats pixels."""

    scale, fingerprint = 2, "repeat"

    def __init__(self) -> None:
        self.module = nn.Conv2d(3, 3, 1)

    def restore(self, lq: torch.Tensor, ids: object = None) -> torch.Tensor:
        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_the_untouched_photo_of_a_student_that_enlarges_is_enlarged_by_bicubic_interpolation(
    run: Config, students: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmd_ray.evaluation.methods.load_student", lambda cfg: Enlarge())
    run.evaluation.source_hq = run.evaluation.source_lq = None
    for path in (tmp_path / "target" / "lq").iterdir():
        path.write_bytes(encode_png(cv2.resize(read(path), (16, 16), interpolation=cv2.INTER_AREA)))
    found = judged(run, students)
    lq, hq = (read(tmp_path / "target" / side / "02.png") for side in ("lq", "hq"))
    large = np.clip(cv2.resize(lq, (32, 32), interpolation=cv2.INTER_CUBIC), 0, 1)
    assert found.students[0] == "lq"
    assert found.values("lq", "target", "psnr")["02.png"] == pytest.approx(psnr(large, hq), abs=1e-6)
    assert found.mean("baseline", "target", "psnr") is not None


def test_students_of_one_evaluation_have_one_scale(
    run: Config, students: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter([Enlarge(), Enlarge()])
    second = Enlarge()
    second.scale = 4
    made = iter([Enlarge(), second])
    monkeypatch.setattr("gmd_ray.evaluation.methods.load_student", lambda cfg: next(made))
    failure = EvaluationActor(run, students).failure
    assert isinstance(failure, ConfigError)
    assert "baseline by 2 and adapted by 4" in str(failure)


class Grain:
    """A no-reference score that takes noise for quality: the mean step between neighbours."""

    name, higher_is_better, needs_reference = "grain", True, False

    def __call__(self, image: torch.Tensor, reference: object = None, mask: object = None) -> float:
        return float((image[:, 1:] - image[:, :-1]).abs().mean() * 255)


def test_the_ground_truth_is_a_row_of_every_no_reference_metric_and_judges_it(
    run: Config, students: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noisy photos score above their truth; the row that comes nearer to the truth's value is the better one."""
    monkeypatch.setattr("gmd_ray.evaluation.actor.load_metric", lambda name, **kwargs: Grain())
    run.evaluation.metrics = ["niqe"]
    found = judged(run, students)
    truth = found.truth("target", "niqe")
    image = read(tmp_path / "target" / "hq" / "01.png")
    assert truth["01.png"] == pytest.approx(np.abs(np.diff(levels(image), axis=0)).mean(), rel=1e-5)
    assert set(truth) == set(found.images("target"))
    lines = markdown(found).splitlines()
    [row] = [
        line for line in lines[: lines.index(next(x for x in lines if "source (" in x))] if "ground truth |" in line
    ]
    assert f"| {sum(truth.values()) / 6:.3f} |" in row or f"| {sum(truth.values()) / 6:.2f} |" in row
    difference = found.difference("lq", "target", "niqe")
    assert difference is not None
    gaps = [
        abs(found.values("lq", "target", "niqe")[i] - truth[i])
        - abs(found.values("baseline", "target", "niqe")[i] - truth[i])
        for i in truth
    ]
    assert (difference.to_truth, difference.mean) == (True, pytest.approx(np.mean(gaps)))
    assert "judged by its distance to the ground truth's value" in markdown(found)
    run.evaluation.target_hq = None
    without = judged(run, students)
    assert without.truth("target", "niqe") == {}
    plain = without.difference("lq", "target", "niqe")
    assert plain is not None
    assert not plain.to_truth


def test_the_first_image_of_an_actor_does_not_count_as_latency(
    run: Config, students: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    class Cold(Enlarge):
        scale, first = 1, True

        def restore(self, lq: torch.Tensor, ids: object = None) -> torch.Tensor:
            time.sleep(0.4 if self.first else 0.0)
            self.first = False
            return lq

    monkeypatch.setattr("gmd_ray.evaluation.methods.load_student", lambda cfg: Cold())
    run.evaluation.limit, run.evaluation.source_hq, run.evaluation.source_lq = 2, None, None
    assert judged(run, students).costs["target"]["adapted"].seconds < 0.1, "of two images the warm one"
    run.evaluation.limit = 1
    assert judged(run, students).costs["target"]["adapted"].seconds >= 0.4, "there is no other"
