from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, DataError, ModelError
from gmd_ray.evaluation import Evaluation, evaluate
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.evaluation.evaluate import collect
from gmd_ray.evaluation.items import held_out_items, spread
from gmd_ray.evaluation.methods import find_outputs, plan_methods
from gmd_ray.evaluation.summaries import markdown
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.quality.feature_sets import feature_set, frechet_distance
from gmd_ray.quality.frechet import FrechetDistance
from gmd_ray.students import load_student
from tests.evaluation.conftest import save_student


def judged(cfg: Config, students: dict[str, str]) -> Evaluation:
    """Evaluate without Ray."""
    items = held_out_items(cfg)
    find_outputs(plan_methods(cfg, students), items)
    table = pa.Table.from_pylist(items)
    return collect(cfg, students, items, [EvaluationActor(cfg, students)(table)])


def levels(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1).astype(np.float64) * 255)


def psnr(image: np.ndarray, hq: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((levels(image) - levels(hq)) ** 2)))


def read(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes())


def restored(cfg: Config, path: str, lq: np.ndarray) -> np.ndarray:
    return to_images(load_student(replace(cfg.student, path=path)).restore(to_tensor([lq])))[0]


def test_without_ground_truth_only_no_reference_metrics_are_measured(run: Config, students: dict[str, str]) -> None:
    run.evaluation.target_hq = run.evaluation.source_hq = run.evaluation.source_lq = None
    run.evaluation.metrics = ["psnr", "niqe"]
    run.evaluation.weights = {"niqe": "/nowhere/niqe.mat"}
    found = judged(run, {"baseline": students["baseline"]})
    assert found.datasets == ("target",)
    assert found.values("baseline", "target", "psnr") == {}
    assert found.lacking("target") == ("psnr",)
    assert found.failures("target") == []
    assert "no such file" in found.unavailable["niqe"]
    assert "niqe: unavailable" in markdown(found)
    assert "- psnr: unavailable: needs ground truth, which this test set lacks" in markdown(found)


def test_a_metric_lacks_ground_truth_on_one_set_and_is_measured_on_the_other(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    run.evaluation.target_hq = None
    (tmp_path / "target" / "lq" / "03.png").write_bytes(b"not a picture")
    found = judged(run, students)
    assert found.lacking("target") == ("psnr", "ssim")
    assert found.lacking("source") == ()
    assert len(found.values("adapted", "source", "psnr")) == 4
    assert found.unavailable == {}
    assert found.failures("target") == []


def test_other_pictures_under_the_same_names_are_another_test_set(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    one = {"baseline": students["baseline"]}
    sets = [judged(run, one)]
    assert judged(run, students).test_set("target") == sets[0].test_set("target"), "students are no part of it"
    for side, image in (("hq", "01.png"), ("lq", "02.png")):
        path = tmp_path / "target" / side / image
        path.write_bytes(encode_png(1 - read(path)))
        sets.append(judged(run, one))
    run.target.gray = True
    sets.append(judged(run, one))
    assert len({found.test_set("target") for found in sets}) == 4
    assert len({found.test_set("source") for found in sets}) == 1


def test_what_degrades_a_source_test_set_is_part_of_it(run: Config, students: dict[str, str]) -> None:
    run.evaluation.target_lq = run.evaluation.target_hq = run.evaluation.source_lq = None
    sets = set()
    for degradation, arguments, seed in (("noise25", {}, 0), ("noise50", {}, 0), ("noise25", {}, 1)):
        run.source.degradation, run.source.degradation_args, run.seed = degradation, arguments, seed
        sets.add(judged(run, {"baseline": students["baseline"]}).test_set("source"))
    assert len(sets) == 3


class Slow:
    """A student that takes its time on every image, most of all on the first."""

    scale, fingerprint = 1, "slow"

    def __init__(self) -> None:
        self.module = torch.nn.Conv2d(3, 3, 1)
        self._pauses = iter([0.3, 0.05, 0.05, 0.05, 0.05, 0.05] * 2)

    def restore(self, lq: torch.Tensor, ids: object = None) -> torch.Tensor:
        time.sleep(next(self._pauses))
        return lq


def test_parameters_and_median_seconds_of_each_student(
    run: Config, students: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.evaluation.source_hq = run.evaluation.source_lq = None
    monkeypatch.setattr("gmd_ray.evaluation.methods.load_student", lambda cfg: Slow())
    found = judged(run, students)
    cost = found.costs["target"]["adapted"]
    assert cost.parameters == 3 * 3 + 3
    assert 0.05 <= cost.seconds < 0.2, "the median, not the mean"
    assert cost.device.startswith("CPU (")
    assert set(found.costs["target"]) == {"baseline", "adapted"}, "the input itself takes nothing"
    assert "| parameters | s/image |" in markdown(found)


class ChannelMeans(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_a_metric_of_sets_has_one_value_for_each_student(
    run: Config, students: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmd_ray.quality.frechet._inception", lambda weights: ChannelMeans())
    (tmp_path / "fid.pth").write_bytes(b"weights")
    run.evaluation.metrics, run.evaluation.weights = ["psnr", "fid"], {"fid": str(tmp_path / "fid.pth")}
    run.evaluation.source_hq = run.evaluation.source_lq = None
    (tmp_path / "target" / "lq" / "03.png").write_bytes(b"not a picture")
    found = judged(run, students)
    assert len(found.images("target")) == 6
    images = [image for image in found.images("target") if image != "03.png"]
    metric = FrechetDistance(ChannelMeans(), "cpu")

    def features(pictures: list[np.ndarray]) -> np.ndarray:
        return np.stack([metric.features(to_tensor([levels(picture) / 255])[0]) for picture in pictures])

    truths = features([read(tmp_path / "target" / "hq" / image) for image in images])
    outputs = features([restored(run, students["adapted"], read(tmp_path / "target" / "lq" / i)) for i in images])
    expected = frechet_distance(feature_set(outputs), feature_set(truths))
    assert found.mean("adapted", "target", "fid") == pytest.approx(expected, rel=1e-4)
    assert found.directions["fid"] is False
    difference = found.difference("adapted", "target", "fid")
    assert difference is not None
    assert (difference.n, difference.low, difference.lower_is_better) == (1, None, True)
    assert ("adapted", "fid") in {(student, metric) for student, metric, _, _ in found.failures("target")}
    assert "| method | psnr ↑ | fid ↓ |" in markdown(found)


def test_a_metric_of_sets_without_weights_says_so(run: Config, students: dict[str, str]) -> None:
    run.evaluation.metrics = ["psnr", "fid"]
    found = judged(run, {"baseline": students["baseline"]})
    assert "or set evaluation.weights.fid=FILE" in found.unavailable["fid"]


def test_no_metric_at_hand_and_no_pictures(run: Config, students: dict[str, str]) -> None:
    run.evaluation.target_hq = run.evaluation.source_hq = run.evaluation.source_lq = None
    run.evaluation.report_images = 0
    found = judged(run, students)
    assert found.lacking("target") == ("psnr", "ssim")
    assert found.pictures.num_rows == 0


def test_a_source_test_set_without_inputs_is_degraded_with_a_fixed_seed(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    run.evaluation.target_lq = run.evaluation.target_hq = run.evaluation.source_lq = None
    run.source.degradation, run.seed = "noise25", 3
    found = judged(run, {"baseline": students["baseline"]})
    for image in found.images("source"):
        hq = read(tmp_path / "source" / "hq" / image)
        lq = make_degradation("noise25")(hq, sample_rng("source-test", 3, image))
        assert found.values("lq", "source", "psnr")[image] == pytest.approx(psnr(lq, hq), abs=1e-6)


def test_an_image_that_fails_is_counted_and_the_rest_is_measured(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "target" / "lq" / "03.png").write_bytes(b"not a picture")
    found = judged(run, students)
    assert len(found.values("adapted", "target", "psnr")) == 5
    failures = found.failures("target")
    assert {(student, metric, n) for student, metric, _, n in failures} == {
        (student, metric, 1) for student in ("lq", "baseline", "adapted") for metric in ("psnr", "ssim")
    }
    assert all("not an image" in reason for _, _, reason, _ in failures)
    difference = found.difference("adapted", "target", "psnr")
    assert difference is not None
    assert difference.n == 5


@pytest.mark.usefixtures("ray_session")
def test_a_checkpoint_that_does_not_load_is_one_line_of_ours(
    run: Config, students: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match=r"broken\.safetensors") as caught:
        evaluate(run, {**students, "adapted": str(broken)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["pnsr"]}, "did you mean 'psnr'"),
        ({"metrics": []}, "evaluation.metrics is empty"),
        ({"target_lq": None}, "evaluation.target_hq: set evaluation.target_lq too"),
        ({"target_lq": None, "target_hq": None, "source_hq": None, "source_lq": None}, "nothing to evaluate on"),
        ({"source_lq": None}, "source.degradation"),
    ],
)
def test_settings_that_cannot_be_met(
    run: Config, students: dict[str, str], changes: dict[str, object], message: str
) -> None:
    for key, value in changes.items():
        setattr(run.evaluation, key, value)
    with pytest.raises(ConfigError, match=message):
        evaluate(run, students)


def test_missing_partners_are_named(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "target" / "hq" / "04.png").unlink()
    with pytest.raises(DataError, match=r"04\.png"):
        evaluate(run, students)


def test_the_name_lq_is_taken(run: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lq'"):
        evaluate(run, {"lq": save_student(tmp_path / "s.safetensors", 0, 1.0)})


def test_pictures_are_spread_evenly_with_both_ends() -> None:
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread([3, 1], 5) == [3, 1]
    assert spread([3, 1], 0) == []
    assert spread([3, 1], 1) == [3]


def test_the_picture_of_a_large_image_is_its_centre(run: Config, students: dict[str, str], tmp_path: Path) -> None:
    run.evaluation.source_hq = run.evaluation.source_lq = None
    wide = np.linspace(0, 1, 400 * 340 * 3, dtype=np.float32).reshape(340, 400, 3)
    for side in ("lq", "hq"):
        (tmp_path / "target" / side / "99.png").write_bytes(encode_png(wide))
    found = judged(run, students)
    picture = decode_png(found.picture("target", "99.png", "hq") or b"")
    assert np.array_equal(levels(picture), levels(wide[10:330, 40:360]))
