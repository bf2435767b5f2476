"""Source and target crops."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gmd_ray.config import SourceConfig
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.images.sets.pairs import list_pairs
from gmd_ray.training.data.batches import Batch, Batches, Prefetcher
from gmd_ray.training.data.crops import cut, place
from gmd_ray.training.data.datasets import SourcePairs, TargetPairs, median
from gmd_ray.training.data.mixing import Mixture
from gmd_ray.training.data.targets import AcceptedPairs
from tests.training.toys import make_config, noisy, pair_row, picture, write_source, write_store

RNG = np.random.default_rng


def _source(folder: Path, *, patch: int, cache_bytes: int = 1 << 30, **cfg: object) -> SourcePairs:
    settings = SourceConfig(hq=str(folder / "hq"), **cfg)  # type: ignore[arg-type]
    pairs = list_pairs(str(folder / "hq"), settings.lq, settings.lq_template)
    scale = 2 if "degradation_args" in cfg else 1
    return SourcePairs(settings, pairs, scale=scale, patch=patch, flip=True, seed=5, cache_bytes=cache_bytes)


def _target_plan(store: Path, n: int = 4, *, use_median: bool = False) -> AcceptedPairs:
    return AcceptedPairs(str(store), 0.0, True, use_median, (), tuple(f"{i:03d}.png" for i in range(n)), "digest")


def test_source_crops_are_of_the_right_pair_whether_cached_or_not(tmp_path: Path) -> None:
    write_source(tmp_path)
    cached = _source(tmp_path, patch=64, lq=str(tmp_path / "lq"))
    uncached = _source(tmp_path, patch=64, lq=str(tmp_path / "lq"), cache_bytes=0)
    for index in range(6):
        for _ in range(2):
            (lq, hq), again = (pairs.crop(index, 0, RNG(3)) for pairs in (cached, uncached))
            assert np.array_equal(lq, again[0])
            assert np.array_equal(hq, again[1])
        lq, hq = cached.crop(index, 0, _NoTurn())
        clean = picture(index, 18 + 3 * (index % 3))
        assert np.array_equal(hq[: clean.shape[0], : clean.shape[1]], clean)
        assert np.array_equal(lq[: clean.shape[0], : clean.shape[1]], noisy(clean, index))


class _NoTurn(np.random.Generator):
    """Draws zeros: the crop at the top left, unturned."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, *args: object, **kwargs: object) -> int:  # type: ignore[override]
        return 0


def test_cache_keeps_to_its_room(tmp_path: Path) -> None:
    write_source(tmp_path)
    room = 3 * 24 * 20 * 3 * 2
    pairs = _source(tmp_path, patch=8, lq=str(tmp_path / "lq"), cache_bytes=room)
    for index in range(6):
        pairs.crop(index, 0, RNG(0))
    kept = sum(image.nbytes for images in pairs._cache.values() for image in images if image is not None)
    assert 0 < len(pairs._cache) < 6
    assert kept <= room
    assert pairs._room == room - kept


def test_degradation_differs_by_epoch_and_is_the_same_again(tmp_path: Path) -> None:
    write_source(tmp_path)
    pairs = _source(tmp_path, patch=16, degradation="noise")
    (lq0, hq0), (lq1, hq1), (again, _) = (pairs.crop(2, epoch, RNG(1)) for epoch in (0, 1, 0))
    assert np.array_equal(hq0, hq1)
    assert not np.array_equal(lq0, lq1)
    assert np.array_equal(lq0, again)


def test_small_image_is_degraded_as_a_whole(tmp_path: Path) -> None:
    write_source(tmp_path, n=1)
    chain = make_degradation("jpeg", {"scale": 2, "jpeg_quality": [40, 60]})
    args = {"scale": 2, "jpeg_quality": [40, 60]}
    lq, hq = _source(tmp_path, patch=6, degradation="jpeg", degradation_args=args).crop(0, 3, _NoTurn())
    clean = picture(0, 18)
    assert np.array_equal(hq, clean[:12, :12])
    assert np.array_equal(lq, chain(clean, sample_rng(5, "0.png", 3))[:6, :6])


def test_large_image_is_degraded_around_the_crop_only(tmp_path: Path) -> None:
    (tmp_path / "hq").mkdir()
    clean = picture(0, 300, 400)
    (tmp_path / "hq" / "a.png").write_bytes(encode_png(clean))
    pairs = _source(tmp_path, patch=16, degradation="blur")
    whole = make_degradation("blur")(clean, sample_rng(5, "a.png", 0))
    for seed in range(5):
        where = place(300, 400, 16, True, RNG(seed))
        lq, hq = pairs.crop(0, 0, RNG(seed))
        assert np.array_equal(hq, cut(clean, where, 16))
        assert np.array_equal(lq, cut(whole, where, 16)), "blur must reach beyond the border of the crop"


def test_scale_of_the_degradation_must_be_the_students(tmp_path: Path) -> None:
    write_source(tmp_path)
    cfg = SourceConfig(hq=str(tmp_path / "hq"), degradation="none")
    with pytest.raises(ConfigError, match=r"source\.degradation_args\.scale=4"):
        SourcePairs(cfg, list_pairs(cfg.hq or "", None), scale=4, patch=8, flip=True, seed=0, cache_bytes=0)


def test_target_crops_are_the_accepted_rows_sorted_by_id(tmp_path: Path) -> None:
    write_store(tmp_path, [pair_row(i) for i in range(4)])
    pairs = TargetPairs(_target_plan(tmp_path), scale=1, patch=20, flip=False)
    for index in range(4):
        lq, target = pairs.crop(index, 0, _NoTurn())
        clean = picture(100 + index)
        assert np.array_equal(target, clean[:20, :20])
        assert np.array_equal(lq, noisy(clean, 100 + index)[:20, :20])


def test_median_control_is_opencvs_median_of_restored(tmp_path: Path) -> None:
    write_store(tmp_path, [pair_row(i) for i in range(4)])
    pairs = TargetPairs(_target_plan(tmp_path, use_median=True), scale=1, patch=20, flip=False)
    _, target = pairs.crop(2, 0, _NoTurn())
    restored = cv2.imdecode(np.frombuffer(pair_row(2)["restored"], np.uint8), cv2.IMREAD_COLOR)
    expected = cv2.cvtColor(cv2.medianBlur(restored, 3), cv2.COLOR_BGR2RGB)
    assert np.array_equal(np.rint(target * 255).astype(np.uint8), expected[:20, :20])


def test_median_by_its_definition() -> None:
    image = picture(7)
    by_hand = np.median([np.roll(image, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)], axis=0)
    np.testing.assert_allclose(median(image)[1:-1, 1:-1], by_hand[1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("broken", [None, b"", b"text", "truncated"])
def test_a_pair_without_a_whole_image_is_named(tmp_path: Path, broken: object) -> None:
    rows = [pair_row(i) for i in range(4)]
    rows[2]["lq"] = rows[2]["lq"][:-20] if broken == "truncated" else broken
    write_store(tmp_path, rows)
    with pytest.raises(DataError, match=r"002\.png has no complete PNG in column lq"):
        TargetPairs(_target_plan(tmp_path), scale=1, patch=8, flip=False)


def test_sizes_that_do_not_fit_the_student_are_named(tmp_path: Path) -> None:
    write_store(tmp_path, [pair_row(0), pair_row(1, lq=encode_png(picture(1, 8, 8)))])
    pairs = TargetPairs(_target_plan(tmp_path, 2), scale=1, patch=8, flip=False)
    with pytest.raises(DataError, match=r"001\.png: lq is 8x8"):
        pairs.crop(1, 0, RNG(0))


def test_ground_truth_takes_the_place_of_the_pseudo_target(tmp_path: Path) -> None:
    write_store(tmp_path, [pair_row(i) for i in range(2)])
    truths = []
    for i in range(2):
        truths.append(str(tmp_path / f"truth{i}.png"))
        Path(truths[i]).write_bytes(encode_png(picture(300 + i)))
    spec = dataclasses.replace(_target_plan(tmp_path, 2), truths=tuple(truths))
    pairs = TargetPairs(spec, scale=1, patch=16, flip=False)
    for i in range(2):
        lq, hq = pairs.crop(i, 0, _NoTurn())
        assert np.array_equal(lq, decode_png(pair_row(i)["lq"])[:16, :16])
        assert np.array_equal(hq, picture(300 + i)[:16, :16])


def test_store_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    write_store(tmp_path, [pair_row(i) for i in range(3)])
    with pytest.raises(DataError, match="changed"):
        TargetPairs(_target_plan(tmp_path, 4), scale=1, patch=8, flip=False)


def _batches(folder: Path, rank: int = 0, world_size: int = 1, *, made: bool = False) -> Batches:
    """`made`: LQ sides of the source are made on the fly."""
    cfg = make_config(folder)
    if made:
        cfg.source.lq, cfg.source.degradation = None, "noise25"
    pairs = list_pairs(cfg.source.hq or "", cfg.source.lq)
    source = SourcePairs(cfg.source, pairs, scale=1, patch=12, flip=True, seed=0, cache_bytes=1 << 20)
    ids = tuple(f"{i:03d}.png" for i in range(1, 8))
    target = TargetPairs(AcceptedPairs(f"{cfg.out}/pairs", 1.0, True, False, (), ids, ""), scale=1, patch=12, flip=True)
    mixture = Mixture(5, 0.6, len(pairs), len(ids), seed=0)
    return Batches(mixture, {"source": source, "target": target}, 0, rank, world_size)


@pytest.mark.parametrize("made", [False, True])
def test_digests_of_the_global_batches_are_those_of_any_ranks_and_of_a_resumed_run(tmp_path: Path, made: bool) -> None:
    whole = _batches(tmp_path, made=made)
    digests = [whole(step).digest() for step in range(8)]
    assert len(set(digests)) == 8
    for world_size in (1, 2, 4):
        start = 8 - 2 * world_size  # a run that a checkpoint of this step was left by; its workers are all new
        loaders = [
            Prefetcher(_batches(tmp_path, rank, world_size, made=made), start, 8, 2) for rank in range(world_size)
        ]
        with contextlib.ExitStack() as stack:
            prefetchers = [stack.enter_context(loader) for loader in loaders]
            for step in range(start, 8):
                assert Batch.joined(prefetcher.get() for prefetcher in prefetchers).digest() == digests[step]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_draw_the_batch_of_one(tmp_path: Path, world_size: int) -> None:
    whole = _batches(tmp_path)
    ranks = [_batches(tmp_path, rank, world_size) for rank in range(world_size)]
    for step in range(6):
        for side in range(4):
            dealt = [batches(step)[side] for batches in ranks]
            slots = [dealt[slot % world_size][slot // world_size] for slot in range(5)]
            assert torch.equal(torch.stack(slots), whole(step)[side])
    keys = torch.cat([whole(step).keys for step in range(50)])
    assert len(keys.unique()) == len(keys)  # no draw repeats, though samples do


def test_prefetched_batches_come_in_order_whatever_the_threads(tmp_path: Path) -> None:
    batches = _batches(tmp_path)
    for threads in (1, 3):
        with Prefetcher(batches, 2, 9, threads) as prefetcher:
            for step in range(2, 9):
                for got, made in zip(prefetcher.get(), batches(step), strict=True):
                    assert torch.equal(got, made)


def test_error_in_a_batch_reaches_its_step(tmp_path: Path) -> None:
    batches = _batches(tmp_path)
    (Path(make_config(tmp_path).source.hq or "") / "3.png").write_bytes(b"no image")
    with Prefetcher(batches, 0, 20, 2) as prefetcher, pytest.raises(DataError, match=r"3\.png"):
        [prefetcher.get() for _ in range(20)]


def test_eight_bit_cache_gives_the_decoded_values_back(tmp_path: Path) -> None:
    image = picture(1)
    (tmp_path / "hq").mkdir()
    deep = np.rint(np.random.default_rng(0).random((20, 20, 3)) * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "hq" / "deep.png"), deep)
    (tmp_path / "hq" / "flat.png").write_bytes(encode_png(image))
    pairs = _source(tmp_path, patch=16, degradation="none")
    _, hq = pairs.crop(0, 0, _NoTurn())
    np.testing.assert_allclose(hq, deep[:16, :16, ::-1].astype(np.float32) / 65535, atol=1e-6)
    _, hq = pairs.crop(1, 0, _NoTurn())
    assert np.array_equal(hq, decode_png(encode_png(image))[:16, :16])
    assert pairs._cache[0][1].dtype == np.float32
    assert pairs._cache[1][1].dtype == np.uint8
