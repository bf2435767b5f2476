"""pyiqa's metrics: real NIQE and BRISQUE, NIMA of the real class, and the messages of metrics that are unavailable."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyiqa")

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.quality import Metric, MetricUnavailable, Scorer, load_metric, load_scorer
from gmd_ray.quality.nima import NimaScorer
from gmd_ray.quality.pyiqa_metrics import fixed_draws, safe_and_quiet
from tests.quality.conftest import write_brisque_matlab

NAMES = ("I03", "I04", "I06", "I08", "I19")


@pytest.fixture(scope="module")
def niqe(shared_data: Path) -> Metric:
    return load_metric("niqe", weights=str(shared_data / "weights" / "niqe_from_basicsr.mat"), device="cpu")


@pytest.fixture(scope="module")
def brisque_weights(shared_data: Path) -> str:
    return str(shared_data / "weights" / "brisque_from_allmodel.pth")


def untrained_nima() -> torch.nn.Module:
    from pyiqa.models.inference_model import InferenceModel

    from gmd_ray.quality.whole_checkpoints import untrained_options

    options = untrained_options("nima-vgg16-ava")
    assert options is not None
    return InferenceModel("nima-vgg16-ava", device=torch.device("cpu"), **options).net


@pytest.fixture(scope="module")
def nima_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as pyiqa publishes them, of the real class with a VGG16 backbone, untrained."""
    torch.manual_seed(0)
    network = untrained_nima()
    path = tmp_path_factory.mktemp("nima") / "nima.pth"
    torch.save({"params": network.state_dict()}, path)
    return path


def photo(height: int = 120, width: int = 130) -> torch.Tensor:
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = np.stack([np.sin(rows / 7), np.cos(columns / 9), np.sin((rows + columns) / 11)]) * 0.3 + 0.5
    return torch.from_numpy(np.clip(planes + rng.normal(0, 0.04, planes.shape), 0, 1)).float()


def read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def test_published_niqe_and_brisque(shared_data: Path, niqe: Metric, brisque_weights: str) -> None:
    """Values are within 0.01 of the published ones (the SVM's rounding), and closer to those measured with these files.

    Machines differ for an unknown reason: NIQE of I03 is 15.6532 on one and 15.6558 on two others.
    """
    folder = shared_data / "metric_calibration"
    with (folder / "calibration_summary.csv").open() as file:
        published = {row["Method"]: row for row in csv.DictReader(file)}
    measured = {
        "niqe": ((15.6558, 3.6549, 3.2342, 3.1917, 9.0727), 0.003),
        "brisque": ((94.6440, -0.1152, 1.0748, 5.1383, 66.8348), 0.009),
    }
    metrics = {"niqe": niqe, "brisque": load_metric("brisque", weights=brisque_weights, device="cpu")}
    for method, metric in metrics.items():
        assert not metric.higher_is_better
        assert not metric.needs_reference
        values, tolerance = measured[method]
        for name, here in zip(NAMES, values, strict=True):
            value = metric(read(folder / "dist_dir" / f"{name}.bmp"))
            assert value == pytest.approx(float(published[f"{method}(ours)"][f"{name}.bmp"]), abs=0.01)
            assert value == pytest.approx(here, abs=tolerance)


def test_batch_equals_singles(brisque_weights: str) -> None:
    scorer = load_scorer(ScorerConfig(metric="brisque", weights=brisque_weights, device="cpu"))
    assert isinstance(scorer, Scorer)
    assert not scorer.higher_is_better
    images = torch.stack([photo(), photo().flip(1) * 0.7, torch.rand(3, 120, 130)])
    scores = scorer.score(images)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, torch.cat([scorer.score(image[None]) for image in images]))
    assert len(set(scores.tolist())) == 3


def test_values_are_those_of_the_saved_file(niqe: Metric) -> None:
    image = torch.round(photo() * 255) / 255
    assert niqe(image + 0.3 / 255) == niqe(image)
    assert niqe(image * 1.8) == niqe((image * 1.8).clamp(0, 1))


def test_images_that_cannot_be_measured(niqe: Metric, brisque_weights: str) -> None:
    with pytest.raises(DataError, match="'niqe' needs 96 pixels on each side; this image has 130x95"):
        niqe(photo(95, 130))
    brisque = load_metric("brisque", weights=brisque_weights, device="cpu")
    for metric, image in (
        (niqe, torch.full((3, 128, 128), 0.5)),  # no structure to fit
        (brisque, torch.full((3, 128, 128), 0.5)),
        (brisque, torch.rand(3, 1, 1)),
        (brisque, torch.full((3, 64, 64), float("nan"))),
    ):
        with pytest.raises(DataError) as caught:
            metric(image)
        assert "\n" not in str(caught.value)


def test_fingerprint_follows_the_weights(shared_data: Path, niqe: Metric, tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    source = shared_data / "weights" / "niqe_from_basicsr.mat"
    copy = tmp_path / "elsewhere.mat"
    copy.write_bytes(source.read_bytes())
    first = load_scorer(ScorerConfig(metric="niqe", weights=str(source), device="cpu")).fingerprint
    assert load_scorer(ScorerConfig(metric="niqe", weights=str(copy), device="cpu")).fingerprint == first
    parameters = {key: value for key, value in loadmat(source).items() if not key.startswith("__")}
    parameters["mu_prisparam"] = parameters["mu_prisparam"] + 1e-3
    savemat(copy, parameters)
    assert load_scorer(ScorerConfig(metric="niqe", weights=str(copy), device="cpu")).fingerprint != first


def test_nima_from_local_weights_needs_no_backbone(nima_weights: Path, empty_directory: Path) -> None:
    """timm would download a trained backbone first, only to have it overwritten."""
    scorer = load_scorer(ScorerConfig(metric="nima-vgg16-ava", weights=str(nima_weights), device="cpu"))
    assert scorer.higher_is_better
    oracle = untrained_nima().eval()
    oracle.load_state_dict(torch.load(nima_weights, weights_only=True)["params"])
    image = torch.round(photo(64, 80) * 255) / 255
    with torch.no_grad():
        expected = oracle(image[None])
    assert scorer.score(image[None]).item() == pytest.approx(expected.item(), abs=1e-4)
    assert scorer.score(image[None]).shape == (1,)


def test_fingerprints_do_not_depend_on_where_the_file_is(nima_weights: Path, tmp_path: Path) -> None:
    """A file of its own and a weights directory are the same model, so that a store can be resumed with either."""
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "NIMA_VGG16_ava-dc4e8265.pth").write_bytes(nima_weights.read_bytes())
    prints = {
        load_scorer(ScorerConfig(metric="nima-vgg16-ava", weights=str(place), device="cpu")).fingerprint
        for place in (nima_weights, tmp_path)
    }
    assert len(prints) == 1


def test_random_crops_are_the_same_ones_each_time() -> None:
    """pyiqa draws crops from the global generators; the caller's own draws go on as if nothing had been measured."""

    def draws() -> tuple[float, float]:
        return torch.rand(1).item(), float(np.random.rand())

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)

    seed()
    undisturbed = draws(), draws()
    seed()
    first = draws()
    with fixed_draws(torch.device("cpu")):
        measured = draws()
    assert (first, draws()) == undisturbed
    with fixed_draws(torch.device("cpu")):
        assert draws() == measured


@pytest.mark.parametrize(
    ("name", "missing", "mend"),
    [
        ("nima", "pyiqa/NIMA_InceptionV2_ava-b0c77c00.pth", "evaluation.weights.nima=FILE"),
        ("niqe", "pyiqa/niqe_modelparameters.mat", "evaluation.weights.niqe=FILE"),
        ("musiq", "pyiqa/musiq_koniq_ckpt-e95806b9.pth", "evaluation.weights.musiq=FILE"),
        ("clipiqa", "clip/RN50.pt", "evaluation.weights.clipiqa=FILE"),
        ("deepdc", "checkpoints/vgg19-dcbb9e9d.pth", None),  # a backbone: no weight file replaces it
    ],
)
def test_missing_weights_are_named_at_once(name: str, missing: str, mend: str | None, empty_directory: Path) -> None:
    with pytest.raises(MetricUnavailable) as caught:
        load_metric(name, device="cpu")
    message = str(caught.value)
    assert message.startswith(f"metric {name!r} is unavailable: ")
    assert f"put it at {empty_directory / missing}" in message
    assert (f", or set {mend} (" in message) if mend else "FILE" not in message
    assert message.endswith(f"(`gmd-ray fetch {name}` downloads it)")
    assert "\n" not in message


def test_every_missing_file_of_a_metric_is_named(empty_directory: Path) -> None:
    with pytest.raises(MetricUnavailable) as caught:
        load_metric("lpips", device="cpu")
    for missing in ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"):
        assert f"put it at {empty_directory / missing}" in str(caught.value)


def test_a_repository_of_the_model_hub_is_named(empty_directory: Path) -> None:
    with pytest.raises(MetricUnavailable, match=r"no timm/resnet50.a1_in1k in the model hub's cache; run `hf download"):
        load_metric("ahiq", device="cpu")


def test_a_damaged_clip_model_is_refused_not_downloaded_again(empty_directory: Path) -> None:
    (empty_directory / "clip").mkdir(parents=True)
    (empty_directory / "clip" / "RN50.pt").write_bytes(b"half of it")
    with pytest.raises(MetricUnavailable, match=r"RN50.pt: damaged \(its SHA-256 is not afeb0e10f9e5a86d"):
        load_metric("clipiqa", device="cpu")


def test_one_process_has_one_cache_of_pyiqa(empty_directory: Path, tmp_path: Path) -> None:
    """pyiqa was imported with another cache by then; it would download `brisque_matlab` to that one."""
    import pyiqa.utils.download_util  # noqa: F401

    write_brisque_matlab(tmp_path / "other" / "pyiqa" / "brisque_matlab.mat")
    with pytest.raises(MetricUnavailable, match=r"pyiqa already uses .* name one weights directory for all metrics"):
        load_metric("brisque_matlab", directory=str(tmp_path / "other"), device="cpu")


def test_safe_loading_is_forced_and_lifted(tmp_path: Path) -> None:
    torch.save({"path": tmp_path}, tmp_path / "pickled.pth")  # a Path is no tensor
    assert torch.load(tmp_path / "pickled.pth", weights_only=False) == {"path": tmp_path}
    with safe_and_quiet(), pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(tmp_path / "pickled.pth", weights_only=False)
    assert torch.load(tmp_path / "pickled.pth", weights_only=False) == {"path": tmp_path}
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_scorer_names_its_own_setting(empty_directory: Path) -> None:
    with pytest.raises(MetricUnavailable, match=r"or set scorer.weights=FILE \("):
        load_scorer(ScorerConfig(metric="niqe", device="cpu"))


def test_scorer_cannot_need_a_reference() -> None:
    with pytest.raises(ConfigError, match=r"scorer.metric='lpips' needs a ground truth"):
        load_scorer(ScorerConfig(metric="lpips"))
    with pytest.raises(ConfigError, match=r"scorer.metric: no metric 'nimma'; did you mean 'nima'"):
        load_scorer(ScorerConfig(metric="nimma"))


@pytest.mark.parametrize(("name", "said"), [("fid", "sets of images"), ("clipscore", "caption")])
def test_metrics_that_have_no_value_for_one_image(name: str, said: str) -> None:
    with pytest.raises(MetricUnavailable, match=said):
        load_metric(name)


def test_weights_that_are_not_what_they_should_be(tmp_path: Path, brisque_weights: str) -> None:
    absent = tmp_path / "absent.mat"
    with pytest.raises(MetricUnavailable, match=f"evaluation.weights.niqe={absent}: no such file"):
        load_metric("niqe", weights=str(absent))
    torch.save({"where": tmp_path}, tmp_path / "objects.pth")  # would need full unpickling
    with pytest.raises(MetricUnavailable, match="tensors only"):
        load_metric("brisque", weights=str(tmp_path / "objects.pth"), device="cpu")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("brisque", "niqe", "nima-vgg16-ava"):
        with pytest.raises(MetricUnavailable, match=f"evaluation.weights.{name}=") as caught:
            load_metric(name, weights=str(tmp_path / "text.pth"), device="cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(MetricUnavailable, match="takes no local weight file"):
        load_metric("vif", weights=brisque_weights, device="cpu")


def test_full_reference_metric_of_pyiqa() -> None:
    """GMSD needs no weights: 0 for equal images, larger for worse ones; the border is cut from both."""
    metric = load_metric("gmsd", device="cpu")
    assert isinstance(metric, Metric)
    assert metric.needs_reference
    assert not metric.higher_is_better
    image = photo()
    little, much = ((image + scale * torch.randn_like(image)).clamp(0, 1) for scale in (0.02, 0.2))
    assert metric(image, image) == pytest.approx(0, abs=1e-5)
    assert 0 < metric(little, image) < metric(much, image)
    cut = load_metric("gmsd", device="cpu", crop_border=8)
    assert cut(much, image) == metric(much[:, 8:-8, 8:-8], image[:, 8:-8, 8:-8])
    with pytest.raises(DataError, match="differ in size"):
        metric(image, image[:, 1:])


def test_loading_says_nothing_on_stdout(nima_weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_metric("nima-vgg16-ava", weights=str(nima_weights), device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "missing"), [("lpips", "alexnet-owt-7be5be79.pth"), ("dists", "vgg16-397923af.pth")])
def test_the_fidelity_metric_names_its_missing_files(
    name: str, missing: str, empty_directory: Path, tmp_path: Path
) -> None:
    NimaScorer().save_pretrained(tmp_path / "scorer")
    with pytest.raises(MetricUnavailable, match=f"metric '{name}' is unavailable: no {missing}; put it at"):
        load_scorer(ScorerConfig(path=str(tmp_path / "scorer"), fidelity=name, device="cpu"))
