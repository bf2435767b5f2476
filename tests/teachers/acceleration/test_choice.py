"""`teacher.compile=auto`: on where a run is long enough, with the reason in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.config import Config, PoolConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.acceleration.choice import choose_compilation, compilation_of_run
from tests.teachers.cost.test_flops import FLUX_DEV


@pytest.fixture
def flux(tmp_path: Path) -> TeacherConfig:
    """FLUX.1-dev's config files, and nothing else of it."""
    for part, config in {"transformer": FLUX_DEV, "vae": {"block_out_channels": [128, 256, 512, 512]}}.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    return TeacherConfig(path=str(tmp_path))


def threshold(cfg: TeacherConfig) -> int:
    """The number of images from which on it pays, as the reason gives it."""
    found = re.search(r"pay from ([\d,]+) on|pays from ([\d,]+) on", choose_compilation(cfg, 1, on_gpu=True).why)
    assert found is not None
    return int((found[1] or found[2]).replace(",", ""))


def test_a_run_long_enough_is_compiled(flux: TeacherConfig) -> None:
    enough = threshold(flux)
    # 51 s of compilation and 13 s of checks, at 0.7 to 1.0 s saved an image of 512 x 512 pixels on an H100.
    assert 64 < enough < 64 / 0.65
    assert not choose_compilation(flux, enough - 1, on_gpu=True).on
    assert choose_compilation(flux, enough, on_gpu=True).on
    assert not choose_compilation(flux, 10**6, on_gpu=False).on


def test_replicas_share_the_images(flux: TeacherConfig) -> None:
    enough = threshold(flux)
    four = replace(flux, pool=PoolConfig(max=4))
    assert not choose_compilation(four, 4 * enough - 4, on_gpu=True).on
    assert choose_compilation(four, 4 * enough, on_gpu=True).on


def test_dearer_images_pay_sooner(flux: TeacherConfig) -> None:
    enough = threshold(flux)
    assert threshold(replace(flux, tile=1024)) < enough < threshold(replace(flux, steps=10))
    assert threshold(replace(flux, gpus_per_replica=2)) == pytest.approx(2 * enough, abs=1)


@pytest.mark.parametrize(
    ("change", "on", "why"),
    [
        ({"compile": True}, True, "teacher.compile=true"),
        ({"compile": False}, False, "teacher.compile=false"),
        ({"offload": "group"}, False, "not together with teacher.offload=group"),
        ({"method": "ddim"}, False, "no cost model"),
        ({"path": "nowhere"}, False, "no cost model"),
    ],
    ids=str,
)
def test_what_needs_no_count(flux: TeacherConfig, change: dict[str, Any], on: bool, why: str) -> None:
    choice = choose_compilation(replace(flux, **change), 10**6, on_gpu=True)
    assert choice.on is on
    assert why in choice.why


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        ({"device": "cpu"}, False),
        ({"device": "cuda"}, True),
        ({"pool": PoolConfig(num_gpus=1)}, True),
        ({"pool": PoolConfig(num_gpus=0)}, False),
    ],
    ids=str,
)
def test_actors_see_the_gpus_that_they_reserve(flux: TeacherConfig, settings: dict[str, Any], on: bool) -> None:
    choice = compilation_of_run(Config(teacher=replace(flux, **settings)), 10**6)
    assert choice.on is on
    assert on or choice.why == "the teacher runs on a CPU"


def test_the_setting(tmp_path: Path) -> None:
    assert load_config([]).teacher.compile == "auto"
    assert load_config(["teacher.compile=true"]).teacher.compile is True
    assert load_config(["teacher.compile=false"]).teacher.compile is False
    assert load_config(["teacher.preset=ddim"]).teacher.compile is False
    with pytest.raises(ConfigError, match=r"^teacher\.compile=maybe: "):
        load_config(["teacher.compile=maybe"])
