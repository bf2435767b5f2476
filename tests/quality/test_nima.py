"""The scorer of the NIMA form and the pieces it is trained with."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
import torch

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import DataError, ModelError
from gmd_ray.quality import Scorer, load_scorer
from gmd_ray.quality.nima import BINS, NimaScorer, emd_loss, expected_score, score_distribution


@pytest.fixture
def scorer() -> NimaScorer:
    """Random weights with moved batch statistics, so that the eval mode differs from the train mode."""
    torch.manual_seed(0)
    model = NimaScorer()
    model.train()
    for _ in range(3):
        model(torch.rand(4, 3, 16, 16))
    with torch.no_grad():
        model.head.weight.mul_(5)  # spreads the scores over the scale
    return model.eval()


def test_emd_by_hand() -> None:
    """Two bins: CDFs (1, 1) and (0, 1) differ by 1 in the first, so (1/2 * 1^2)^(1/2)."""
    low, high = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert emd_loss(low, high).item() == pytest.approx(math.sqrt(0.5))
    assert emd_loss(low, high, r=1).item() == pytest.approx(0.5)
    # Three bins: CDFs (.5, .8, 1) and (.1, .9, 1): gaps .4, .1, 0.
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.8, 0.1]])
    assert emd_loss(p, q).item() == pytest.approx(math.sqrt((0.16 + 0.01) / 3), abs=1e-6)
    # A batch is the mean of its items.
    both = emd_loss(torch.cat([low, low]), torch.cat([high, low])).item()
    assert both == pytest.approx(math.sqrt(0.5) / 2, abs=1e-5)


def test_emd_grows_with_the_distance_and_has_a_gradient_at_zero() -> None:
    at = torch.eye(BINS)
    assert emd_loss(at[:1], at[1:2]) < emd_loss(at[:1], at[5:6]) < emd_loss(at[:1], at[9:])
    logits = torch.zeros(1, BINS, requires_grad=True)
    emd_loss(logits.softmax(1), torch.full((1, BINS), 0.1)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_score_distribution_is_the_integrated_normal() -> None:
    from scipy.stats import norm

    bins = score_distribution(torch.tensor([5.3, 2.0], dtype=torch.float64), 0.9)
    for row, mean in zip(bins.numpy(), (5.3, 2.0), strict=True):
        mass = [norm.cdf(k + 0.5, mean, 0.9) - norm.cdf(k - 0.5, mean, 0.9) for k in range(1, 11)]
        assert row == pytest.approx([m / sum(mass) for m in mass], abs=1e-9)
    assert expected_score(bins)[0].item() == pytest.approx(5.3, abs=1e-3)


def test_score_distribution_outside_the_scale_stays_finite() -> None:
    bins = score_distribution(torch.tensor([-40.0, 90.0]), 0.3)
    assert torch.allclose(bins.sum(1), torch.ones(2))
    assert bins.argmax(1).tolist() == [0, 9]


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (1, 1), (1, 7), (33, 20)])
def test_any_size(scorer: NimaScorer, size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size)
    with torch.no_grad():
        distribution = scorer(images)
    assert distribution.shape == (3, BINS)
    assert torch.allclose(distribution.sum(1), torch.ones(3), atol=1e-6)
    scores = scorer.score(images)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert ((scores >= 1) & (scores <= 10)).all()


def test_score_is_the_mean_of_the_distribution(scorer: NimaScorer) -> None:
    image = torch.randint(0, 256, (1, 3, 24, 24)) / 255
    with torch.no_grad():
        bins = scorer(image)[0]
    by_hand = sum((k + 1) * bins[k].item() for k in range(BINS))
    assert scorer.score(image).item() == pytest.approx(by_hand, abs=1e-5)


def test_batch_equals_singles_exactly(scorer: NimaScorer) -> None:
    images = torch.rand(5, 3, 32, 32) * torch.linspace(0.2, 1, 5).view(5, 1, 1, 1)
    batch = scorer.score(images)
    assert torch.equal(batch, torch.cat([scorer.score(image[None]) for image in images]))
    assert len(set(batch.tolist())) == 5, "different images, one score: the comparison would show nothing"


def test_score_is_that_of_the_saved_file(scorer: NimaScorer) -> None:
    images = torch.randint(0, 256, (2, 3, 20, 20)) / 255
    assert torch.equal(scorer.score(images + 0.3 / 255), scorer.score(images))
    assert torch.equal(scorer.score(images * 3), scorer.score((images * 3).clamp(0, 1)))


def test_score_leaves_train_mode_behind(scorer: NimaScorer) -> None:
    """Batch statistics would make a score depend on its neighbours, and would drift."""
    images = torch.rand(2, 3, 16, 16)
    expected, fingerprint = scorer.score(images), scorer.fingerprint
    scorer.train()
    assert torch.equal(scorer.score(images), expected)
    assert scorer.fingerprint == fingerprint


def test_learns_to_tell_blur_from_sharp() -> None:
    torch.manual_seed(0)
    sharp = torch.rand(64, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    images, means = torch.cat([sharp, blurred]), torch.tensor([8.0] * 64 + [3.0] * 64)
    model = NimaScorer((8, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        pick = torch.randperm(128)[:32]
        loss = emd_loss(model(images[pick]), score_distribution(means[pick], 0.9))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = torch.rand(8, 3, 16, 16)
    gap = model.score(unseen) - model.score(torch.nn.functional.avg_pool2d(unseen, 3, 1, 1, count_include_pad=False))
    assert gap.min() > 2


def test_save_and_load_are_exact(scorer: NimaScorer, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 18, 18)
    scorer.save_pretrained(tmp_path / "new" / "folder")
    loaded = NimaScorer.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(loaded.score(images), scorer.score(images))
    assert loaded.fingerprint == scorer.fingerprint
    assert not loaded.training

    with torch.no_grad():
        loaded.head.bias[0] += 1e-4
    assert loaded.fingerprint != scorer.fingerprint


def test_default_size() -> None:
    assert 38_000 < sum(p.numel() for p in NimaScorer().parameters()) < 46_000


def test_load_scorer_from_a_directory(scorer: NimaScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    gate = load_scorer(ScorerConfig(path=str(tmp_path), metric="psnr", device="cpu"))
    assert isinstance(gate, Scorer)
    assert gate.higher_is_better
    assert gate.fingerprint == scorer.fingerprint
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(gate.score(images), scorer.score(images))


@pytest.mark.parametrize(
    "images", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.full((1, 3, 8, 8), float("nan"))]
)
def test_images_that_cannot_be_scored(scorer: NimaScorer, images: torch.Tensor) -> None:
    with pytest.raises(DataError):
        scorer.score(images)


class _Payload:
    """Runs code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


def test_unsafe_weights_are_refused(scorer: NimaScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    weights, mark = tmp_path / "model.safetensors", tmp_path / "ran"
    weights.write_bytes(pickle.dumps(_Payload(mark)))
    with pytest.raises(ModelError, match=r"model.safetensors"):
        NimaScorer.from_pretrained(tmp_path)
    assert not mark.exists()

    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model.safetensors"):
        NimaScorer.from_pretrained(tmp_path)
    assert not mark.exists()


def test_directories_that_hold_something_else(scorer: NimaScorer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        NimaScorer.from_pretrained(tmp_path / "absent")
    scorer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for text, said in (
        ("{", "not JSON"),
        (json.dumps({**config, "class_name": "Resnet"}), "class_name"),
        (json.dumps({**config, "depth": 4}), "depth"),
        (json.dumps({**config, "channels": [24, 48]}), "three widths"),
        (json.dumps({**config, "channels": [24, 48, 32]}), "does not hold the weights"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=said) as caught:
            NimaScorer.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
