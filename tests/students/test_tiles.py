"""Large images in tiles: the measured receptive radius, and the remaining seams."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmd_ray.students.receptive import overlap_for, receptive_radius
from tests.students.networks import save_network, student_of

BOXES = [1, 5, 20]


class Box(nn.Module):
    """Means over (2 r + 1)^2 pixels: sees r pixels far, evenly."""

    def __init__(self, radius: int, scale: int = 1) -> None:
        super().__init__()
        side = 2 * radius + 1
        self.conv = nn.Conv2d(1, 1, side, padding=radius, bias=False)
        nn.init.constant_(self.conv.weight, 1 / side**2)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.conv(channel) for channel in x.split(1, dim=1)], dim=1)
        return nn.functional.interpolate(y, scale_factor=self.scale)


@pytest.mark.parametrize("radius", BOXES)
@pytest.mark.parametrize("scale", [1, 2])
def test_the_radius_of_a_known_network(radius: int, scale: int) -> None:
    assert receptive_radius(Box(radius, scale), scale) == radius


def test_what_is_hardly_seen_does_not_count() -> None:
    box = Box(20)
    with torch.no_grad():
        middle = box.conv.weight[..., 17:24, 17:24].clone()
        box.conv.weight *= 1e-6
        box.conv.weight[..., 17:24, 17:24] = middle
    assert receptive_radius(box) == 3


def test_a_network_that_sees_everything_gets_half_a_tile() -> None:
    class Everywhere(Box):
        def forward(self, x):
            return x + x.mean((2, 3), keepdim=True) + super().forward(x)

    assert receptive_radius(Everywhere(1)) == 64
    assert [overlap_for(Everywhere(1), 1, tile) for tile in (512, 100)] == [256, 50]
    assert [overlap_for(Box(radius), 1, 512) for radius in BOXES] == [32, 32, 80]


LEVELS = 0.01
"""Largest difference of any sample from the whole image's, in 8-bit levels."""


@pytest.mark.parametrize("name", ["dncnn", "esrgan_old", "swinir_x2"])
def test_tiles_with_the_measured_overlap_leave_no_seam(tmp_path, name: str) -> None:
    path = tmp_path / "student.pth"
    save_network(path, name)
    image = torch.rand(1, 3, 150, 180)
    whole = student_of(path).restore(image)

    def seam(**settings) -> float:
        return 255 * (student_of(path, tile=96, **settings).restore(image) - whole).abs().max().item()

    measured, pasted = seam(), seam(tile_overlap=0)
    print(f"{name}: {measured:.2g} levels with the measured overlap, {pasted:.2g} with none")
    assert measured <= LEVELS
    assert pasted > 5 * measured
