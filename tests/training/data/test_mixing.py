"""Composition and order of the global batches."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from gmd_ray.training.data.mixing import Draw, Mixture

RATIOS = [1.0, 0.95, 0.9, 0.6, 0.3, 0.1, 1 / 3, 0.0]


def test_batch_of_32_at_ratio_09_is_the_papers_288_on_average() -> None:
    counts = [Mixture(32, 0.9, 100, 100, 0).composition(step) for step in range(10)]
    assert [n for n, _ in counts] == [29, 29, 29, 29, 28] * 2
    assert all(a + b == 32 for a, b in counts)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 8, 32, 33])
@pytest.mark.parametrize("ratio", RATIOS)
def test_running_total_is_exact_to_less_than_one_slot(batch_size: int, ratio: float) -> None:
    mixture = Mixture(batch_size, ratio, 5, 5, 0)
    total, wanted = 0, Fraction(str(ratio)) * batch_size
    for step in range(500):
        n_source, n_target = mixture.composition(step)
        assert n_source >= 0
        assert n_target >= 0
        assert n_source + n_target == batch_size
        assert abs(n_source - wanted) < 1
        total += n_source
        assert abs(total - wanted * (step + 1)) < 1
    if (wanted * 500).denominator == 1:
        assert total == wanted * 500


def test_decimal_ratios_do_not_drift() -> None:
    # In floats 0.1 * 10 * 3 is above 3, and ceil of it is 4.
    mixture = Mixture(10, 0.1, 5, 5, 0)
    assert {mixture.composition(step) for step in range(100_000, 100_100)} == {(1, 9)}


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [8, 13])
def test_any_world_size_draws_the_same_global_batches(world_size: int, batch_size: int) -> None:
    mixture = Mixture(batch_size, 0.9, 50, 11, seed=3)
    for step in range(40):
        shares = [mixture.share(step, rank, world_size) for rank in range(world_size)]
        assert Counter(draw for share in shares for draw in share) == Counter(mixture.share(step, 0, 1))
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        sources = [sum(draw.stream == "source" for draw in share) for share in shares]
        assert max(sources) - min(sources) <= 1


def test_a_step_needs_no_history() -> None:
    onward = [Mixture(8, 0.9, 30, 7, 1).batch(step) for step in range(50)]
    for step in (49, 0, 31):
        assert Mixture(8, 0.9, 30, 7, 1).batch(step) == onward[step]


def _draws(mixture: Mixture, steps: int, stream: str) -> list[Draw]:
    return [draw for step in range(steps) for draw in mixture.batch(step) if draw.stream == stream]


@pytest.mark.parametrize(("stream", "size"), [("source", 23), ("target", 5)])
def test_every_epoch_covers_each_sample_once_in_an_order_of_its_own(stream: str, size: int) -> None:
    draws = _draws(Mixture(8, 0.75, 23, 5, seed=2), 60, stream)
    epochs = [draws[i : i + size] for i in range(0, len(draws) - size + 1, size)]
    assert len(epochs) >= 10
    for number, epoch in enumerate(epochs):
        assert sorted(draw.index for draw in epoch) == list(range(size))
        assert {draw.epoch for draw in epoch} == {number}
    assert len({tuple(draw.index for draw in epoch) for epoch in epochs}) == len(epochs)
    assert [draw.position for draw in draws] == list(range(len(draws)))


def test_order_hangs_on_the_seed_and_differs_between_streams() -> None:
    def order(seed: int, stream: str) -> list[int]:
        return [draw.index for draw in _draws(Mixture(10, 0.5, 40, 40, seed), 8, stream)]

    assert order(0, "source") != order(1, "source")
    assert order(0, "source") != order(0, "target")
    assert order(4, "target") == order(4, "target")


@pytest.mark.parametrize("ratio", [0.9, 0.3, 1 / 3])
def test_ratio_as_a_weight_halves_every_batch(ratio: float) -> None:
    even, odd = Mixture(8, ratio, 9, 9, 0, mode="loss"), Mixture(5, ratio, 9, 9, 0, mode="loss")
    assert {even.composition(step) for step in range(20)} == {(4, 4)}
    assert [odd.composition(step) for step in range(4)] == [(3, 2), (2, 3)] * 2
    for mixture in (even, odd):
        for step in range(4):
            (n_source, n_target), (source, target) = mixture.composition(step), mixture.weights(step)
            assert n_source * source == pytest.approx(ratio)
            assert n_target * target == pytest.approx(1 - ratio)


@pytest.mark.parametrize(("ratio", "sizes", "streams"), [(1.0, (9, 0), {"source"}), (0.0, (0, 9), {"target"})])
def test_ratio_as_a_weight_is_a_plain_mean_at_its_ends(ratio: float, sizes: tuple[int, int], streams: set[str]) -> None:
    mixture = Mixture(5, ratio, *sizes, 0, mode="loss")
    assert {draw.stream for draw in mixture.batch(3)} == streams
    assert mixture.weights(3) == (0.2, 0.2)


def test_state_says_how_far_the_streams_are() -> None:
    mixture = Mixture(10, 0.9, 30, 30, seed=4)
    for step in (0, 3, 7):
        draws = [draw for earlier in range(step) for draw in mixture.batch(earlier)]
        counts = Counter(draw.stream for draw in draws)
        assert mixture.state(step) == {
            "seed": 4, "step": step, "source": counts["source"], "target": counts["target"],
        }  # fmt: skip


def test_pure_streams_need_only_themselves() -> None:
    assert {draw.stream for draw in Mixture(4, 1.0, 9, 0, 0).batch(3)} == {"source"}
    assert {draw.stream for draw in Mixture(4, 0.0, 0, 9, 0).batch(3)} == {"target"}


def test_a_stream_smaller_than_its_share_of_one_batch_is_cycled_within_it() -> None:
    batch = Mixture(8, 0.0, 0, 3, 0).batch(0)
    assert [draw.epoch for draw in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert Counter(draw.index for draw in batch).most_common(1)[0][1] == 3
