"""Tiling against the network on the whole image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gmd_ray.errors import ConfigError
from gmd_ray.images.tiling import grid_multiple, tile_spans, tiled, tiled_in_batches, tiles_watched

SIZES = [(100, 150), (64, 65), (33, 200), (20, 90), (90, 20), (127, 128)]


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def convolutions(radius: int) -> nn.Module:
    """Make a random float64 network with a receptive radius of `radius` pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(radius):
        conv = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.dirac_(conv.weight)
        conv.weight.data += 0.1 * torch.randn_like(conv.weight)
        layers += [conv, nn.LeakyReLU(0.5)]
    return nn.Sequential(*layers).double().requires_grad_(False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 8, 24])
def test_identity_comes_back(size: tuple[int, int], overlap: int) -> None:
    image = picture(*size, batch=2)
    assert (tiled(lambda x: x, image, 32, overlap) - image).abs().max() < 1e-6


def test_constant_stays_constant() -> None:
    out = tiled(lambda x: x, torch.full((1, 3, 75, 110), 0.7), 32, 12)
    assert (out - 0.7).abs().max() <= 6e-8  # one unit in the last place


@pytest.mark.parametrize("size", SIZES)
def test_scale_2(size: tuple[int, int]) -> None:
    image = picture(*size)
    out = tiled(lambda x: F.interpolate(x, scale_factor=2), image, 32, 8, scale=2)
    assert (out - F.interpolate(image, scale_factor=2)).abs().max() < 1e-6


def test_grid_covers_evenly_with_at_least_the_overlap() -> None:
    for size in range(1, 300):
        for tile, overlap in ((32, 0), (32, 8), (32, 31), (50, 25)):
            spans = tile_spans(size, tile, overlap)
            if size <= tile:
                assert spans == [(0, size)]
                continue
            steps = [b[0] - a[0] for a, b in itertools.pairwise(spans)]
            assert spans[0][0] == 0
            assert spans[-1][1] == size
            assert {stop - start for start, stop in spans} == {tile}
            assert 0 < min(steps) <= max(steps) <= tile - overlap
            assert max(steps) - min(steps) <= 1


def test_tiles_of_a_grid_begin_at_multiples_and_keep_the_overlap() -> None:
    for size in range(33, 300):
        for tile, overlap in ((32, 0), (32, 8), (50, 25), (128, 32)):
            multiple = grid_multiple(tile, overlap)
            assert multiple in (4, 16)
            spans = tile_spans(size, tile, overlap, multiple)
            if size <= tile:
                continue
            assert all(start % multiple == 0 for start, _ in spans)
            assert (spans[0][0], spans[-1][1]) == (0, size)
            assert all(tile <= stop - start < tile + multiple for start, stop in spans)
            assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(spans))
            assert all(a[0] < b[0] for a, b in itertools.pairwise(spans)), "no tile twice"
    assert [grid_multiple(tile, tile // 4) for tile in (1, 8, 100, 512, 4096)] == [1, 1, 8, 64, 64]
    assert grid_multiple(512, 511) == 1


def test_a_strided_network_is_exact_on_the_grid() -> None:
    """A network that shrinks by 4 and enlarges again: a tile at another offset averages over other squares."""
    image = picture(100, 150)

    def squares(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4), "replicate")
        return F.interpolate(F.avg_pool2d(padded, 4), scale_factor=4)[..., : x.shape[-2], : x.shape[-1]]

    whole = squares(image)
    assert (tiled(squares, image, 64, 16, multiple=4) - whole).abs().max() < 1e-6
    assert (tiled(squares, image, 64, 16) - whole).abs().max() > 0.05


def test_calls_depend_on_size_alone() -> None:
    def calls(image: Tensor) -> list[tuple[int, ...]]:
        seen = []

        def fn(x: Tensor) -> Tensor:
            seen.append((x.storage_offset(), *x.shape))
            return x

        tiled(fn, image, 32, 8)
        return seen

    assert calls(picture(70, 90)) == calls(torch.zeros(1, 3, 70, 90))
    assert {call[-2:] for call in calls(picture(20, 90))} == {(20, 32)}


def error_at(radius: int, overlap: int) -> float:
    """Measure the RMS deviation of tiled from whole, relative to the contrast, for an overlap of exactly `overlap`."""
    model, image = convolutions(radius), picture(64, 64 + 2 * (64 - overlap)).double()
    whole = model(image)
    return float(((tiled(model, image, 64, overlap) - whole) ** 2).mean().sqrt() / whole.std())


def test_exact_for_a_receptive_radius_of_a_quarter_of_the_overlap() -> None:
    assert error_at(8, 32) < 1e-12
    assert error_at(9, 32) > 1e-12


def test_close_for_a_receptive_radius_of_half_the_overlap() -> None:
    assert error_at(8, 16) < 1e-4
    assert error_at(8, 16) < error_at(8, 8) / 5 < error_at(8, 0) / 25


def test_no_step_at_a_seam_where_tiles_disagree() -> None:
    """Each tile answers with a level of its own, as a generative model might: it has to fade, not jump."""
    levels = iter(range(100))
    out = tiled(lambda x: torch.full_like(x, float(next(levels))), torch.zeros(1, 3, 32, 120), 64, 32)
    assert out.min() == 0
    assert out.max() == 2
    assert out.diff(dim=-1).abs().max() < 0.11  # a hard paste jumps by 1


def test_whole_image_is_one_call() -> None:
    image = picture(30, 32)
    for tile in (0, 32, 100):
        calls: list[Tensor] = []
        tiled(lambda x, calls=calls: calls.append(x) or x, image, tile, 8)
        assert len(calls) == 1
        assert calls[0] is image


def test_other_channels_and_types() -> None:
    out = tiled(lambda x: x[:, :1].bfloat16(), picture(50, 50), 32, 8)
    assert out.shape == (1, 1, 50, 50)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(("tile", "overlap"), [(-1, 0), (32, 32), (32, -1)])
def test_bad_settings(tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"tile={tile}, tile_overlap={overlap}"):
        tiled(lambda x: x, picture(8, 8), tile, overlap)


def test_tiles_on_a_grid_know_where_they_are() -> None:
    image = torch.rand(1, 3, 48, 88, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []

    def keep(piece: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        [(y, x)] = places
        assert torch.equal(piece, image[..., y : y + piece.shape[-2], x : x + piece.shape[-1]])
        seen.append((y, x))
        return piece

    out = tiled_in_batches(keep, image, tile=32, overlap=8, multiple=8)
    torch.testing.assert_close(out, image, atol=1e-6, rtol=0)
    assert seen == [(y, x) for y in (0, 16) for x in (0, 16, 32, 56)]
    assert [start for start, _ in tile_spans(88, 32, 8)] == [0, 18, 37, 56], "off the grid"


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_tiles_in_batches_are_the_same_tiles(batch: int) -> None:
    image, seen = picture(90, 130), []

    def fn(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return F.avg_pool2d(x, 3, 1, 1)

    with tiles_watched(lambda done, total: ticks.append((done, total))):
        ticks: list[tuple[int, int]] = []
        out = tiled(fn, image, 32, 16, multiple=4, batch=batch)
    assert (out - tiled(lambda x: F.avg_pool2d(x, 3, 1, 1), image, 32, 16, multiple=4)).abs().max() < 1e-6
    assert max(seen) <= batch
    assert sum(seen) == ticks[-1][1]
    assert [done for done, _ in ticks] == list(itertools.accumulate(seen))
    assert len(seen) == sum(seen) if batch == 1 else len(seen) < sum(seen)


def test_a_batch_counts_the_images_too() -> None:
    seen = []
    tiled(lambda x: seen.append(len(x)) or x, picture(50, 80).expand(4, -1, -1, -1), 32, 8, batch=8)
    assert set(seen) <= {4, 8}
    assert 8 in seen


def test_where_memory_does_not_hold_a_batch_it_is_halved() -> None:
    seen = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        seen.append(len(x))
        return x

    image = picture(70, 110)
    assert (tiled(fn, image, 32, 8, batch=8) - image).abs().max() < 1e-6
    assert max(seen) == 2

    def never(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        tiled(never, image, 32, 8, batch=8)
