"""SDEdit: its two limits, and its noise, which depends on the id and the size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.images.noise import image_noise
from gmd_ray.teachers import Teacher, load_teacher
from gmd_ray.teachers.flux.latents import image_ids, pack, unpack
from gmd_ray.teachers.flux.sdedit import SDEditTeacher
from gmd_ray.teachers.flux.teacher import FluxTeacher


def teacher(path: Path, strength: float) -> SDEditTeacher:
    # An injection that FluxTeacher would refuse on so shallow a model: SDEdit has none.
    return SDEditTeacher(TeacherConfig(path=str(path), steps=3, strength=strength, injection=InjectionConfig()))


def images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fixture", ["flux_dir", "flux_vae_dir"])
def test_no_strength_is_the_codecs_round_trip(fixture: str, request: pytest.FixtureRequest) -> None:
    edit = teacher(request.getfixturevalue(fixture), 1e-7)
    x = images(2, 16, 24)
    with torch.no_grad():
        round_trip = (edit.codec.decode(edit.codec.encode(x * 2 - 1)) + 1) / 2
    torch.testing.assert_close(edit.project(x, ["a", "b"]), round_trip.clamp(0, 1), atol=1e-5, rtol=0)


def test_full_strength_depends_on_the_noise_alone(flux_dir: Path) -> None:
    edit = teacher(flux_dir, 1.0)
    first, second = images(1, 16, 24, 1), images(1, 16, 24, 2)
    torch.testing.assert_close(edit.project(first, ["a"]), edit.project(second, ["a"]), atol=1e-5, rtol=0)
    assert (edit.project(first, ["a"]) - edit.project(first, ["b"])).abs().max() > 1e-2
    half = teacher(flux_dir, 0.5)
    assert (half.project(first, ["a"]) - half.project(second, ["a"])).abs().max() > 1e-2


def test_the_batch_does_not_matter(flux_dir: Path) -> None:
    edit = teacher(flux_dir, 0.6)
    assert isinstance(edit, Teacher)
    x, ids = images(3, 17, 30), ["a", "b", "c"]
    together = edit.project(x, ids)
    assert together.shape == x.shape
    alone = torch.cat([edit.project(x[i : i + 1], [ids[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    swapped = edit.project(x.flip(0), ids[::-1]).flip(0)
    torch.testing.assert_close(together, swapped, atol=1e-4, rtol=0)


def test_the_way_back_is_eulers_from_the_mixed_start(flux_dir: Path) -> None:
    """Spelled out: x0 and the noise are mixed at the first time of the grid, then each velocity is added."""
    edit = teacher(flux_dir, 0.6)
    x = images(1, 16, 16)
    seeded = teacher(flux_dir, 1.0)
    with torch.no_grad():
        z0 = edit.codec.encode(x * 2 - 1)
        starts: list[torch.Tensor] = []
        for each in (seeded, edit):
            plan = each._plan(z0.shape[2] * z0.shape[3] // 4)
            run = each.projector.reconstruct
            each.projector.reconstruct = lambda z, *rest, run=run: (starts.append(z), run(z, *rest))[1]  # type: ignore[method-assign, misc]
            out = each.project(x, ["a"])
        noise, start = starts  # at strength 1 the start is the noise
        t = plan.times[0]
        assert 0 < t < 1
        torch.testing.assert_close(start, (1 - t) * pack(z0) + t * noise, atol=1e-5, rtol=0)
        z, ids = start, image_ids(8, 8)
        for now, then in zip(plan.times, plan.times[1:], strict=False):
            z = z + (then - now) * edit.projector.velocity(z, now, ids, edit.prompt, edit.cfg.guidance)
        expected = (edit.codec.decode(unpack(z, 8, 8)) + 1) / 2
    torch.testing.assert_close(out, expected.clamp(0, 1), atol=1e-5, rtol=0)


def test_tiles_see_the_noise_of_the_whole_image(flux_dir: Path) -> None:
    """At full strength and without steps the result is the noise itself, and shows no seams of tiles."""
    x = images(2, 40, 56)

    def starts(edit: SDEditTeacher) -> torch.Tensor:
        edit._reconstruct = lambda noised, clean, ids, plan: noised  # type: ignore[method-assign]
        return edit.project(x, ["a", "b"])

    settings = {"path": str(flux_dir), "steps": 1, "strength": 1.0}
    whole = starts(SDEditTeacher(TeacherConfig(**settings)))  # type: ignore[arg-type]
    tiles = starts(SDEditTeacher(TeacherConfig(**settings, tile=24, tile_overlap=8)))  # type: ignore[arg-type]
    assert whole.std() > 0.1
    torch.testing.assert_close(tiles, whole, atol=1e-6, rtol=0)


def test_noise_is_that_of_the_id() -> None:
    first = image_noise("a", (4, 8, 8))
    assert torch.equal(first, image_noise("a", (4, 8, 8)))
    assert not torch.equal(first, image_noise("b", (4, 8, 8)))
    assert abs(image_noise("a", (16, 64, 64)).std() - 1) < 0.01


def test_its_fingerprint_is_not_the_inversions(flux_dir: Path) -> None:
    none = InjectionConfig(steps=0)
    inversion = FluxTeacher(TeacherConfig(path=str(flux_dir), steps=3, strength=0.5, injection=none))
    assert teacher(flux_dir, 0.5).fingerprint != inversion.fingerprint
    assert teacher(flux_dir, 0.5).fingerprint != teacher(flux_dir, 0.6).fingerprint


def test_it_is_a_method_that_the_settings_name(flux_dir: Path) -> None:
    cfg = load_config([f"teacher.path={flux_dir}", "teacher.method=sdedit", "teacher.nudge=1.15", "teacher.steps=2"])
    found = load_teacher(cfg.teacher)
    assert isinstance(found, SDEditTeacher)
    x = images(1, 16, 16)
    plain = SDEditTeacher(TeacherConfig(path=str(flux_dir), steps=2))
    torch.testing.assert_close(found.project(x, ["a"]), plain.project(x, ["a"]), atol=0, rtol=0)
