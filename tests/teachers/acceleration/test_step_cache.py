"""The step cache: which blocks run when, what a skipped evaluation gives, and what refuses it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.acceleration.graphs import records_forwards
from gmd_ray.teachers.acceleration.step_cache import relative_change
from gmd_ray.teachers.color import ColorFixedTeacher
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux.teacher import FluxTeacher
from tests.teachers.flux.test_teacher import NONE, config, ids, images

HUGE, TINY = 1e9, 1e-12
PROMPT = "a sharp photo"


def load(path: Path, **change: Any) -> FluxTeacher:
    teacher = load_teacher(config(path, **change))
    assert isinstance(teacher, FluxTeacher)
    return teacher


class BlockCalls:
    """The number of images in each call of the first block and of the last one."""

    def __init__(self, teacher: FluxTeacher) -> None:
        self.first: list[int] = []
        self.last: list[int] = []
        for block, calls in (
            (teacher.model.transformer_blocks[0], self.first),
            (teacher.model.single_transformer_blocks[-1], self.last),
        ):
            block.register_forward_pre_hook(
                lambda _, __, given, calls=calls: calls.append(len(given["hidden_states"])), with_kwargs=True
            )


FAMILIES = [("flux_dir", {}), ("flux2_dir", {"prompt": PROMPT, "true_cfg": 3.0})]


@pytest.fixture(params=FAMILIES, ids=["FLUX.1", "FLUX.2"])
def family(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    fixture, settings = request.param
    return request.getfixturevalue(fixture), settings


def test_a_threshold_that_nothing_meets_changes_nothing(family: tuple[Path, dict[str, Any]]) -> None:
    path, settings = family
    plain, cached = load(path, **settings), load(path, step_cache=TINY, **settings)
    x = images(3, 16, 24)
    assert plain.step_cache is None
    assert plain.take_counts() == {}
    assert torch.equal(cached.project(x, ids(x)), plain.project(x, ids(x)))
    passes = 3 if "true_cfg" in settings else 2
    assert cached.take_counts() == {"evaluations": 3 * passes * 3, "skipped": 0}
    assert cached.take_counts() == {"evaluations": 0, "skipped": 0}


@pytest.mark.parametrize("method", ["inversion", "sdedit", "kontext"])
def test_a_huge_threshold_leaves_one_full_evaluation_a_pass(flux_dir: Path, method: str) -> None:
    teacher = load(flux_dir, method=method, prompt=PROMPT, steps=5, injection=NONE, step_cache=HUGE)
    calls, x = BlockCalls(teacher), images(2, 16, 24)
    teacher.project(x, ids(x))
    passes = 2 if method == "inversion" else 1
    assert calls.first == [2] * 5 * passes
    assert calls.last == [2] * passes
    assert teacher.take_counts() == {"evaluations": 2 * 5 * passes, "skipped": 2 * 4 * passes}


def test_each_prompt_has_its_own_reference(family: tuple[Path, dict[str, Any]]) -> None:
    path, _ = family
    teacher = load(path, prompt=PROMPT, true_cfg=3.0, steps=4, injection=NONE, step_cache=HUGE)
    calls, x = BlockCalls(teacher), images(1, 16, 24)
    teacher.project(x, ids(x))
    assert (len(calls.first), len(calls.last)) == (3 * 4, 3)


@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
@pytest.mark.parametrize("blocks", ["all", "single"])
def test_evaluations_with_banks_are_full_ones(flux_dir: Path, cache: str, blocks: str) -> None:
    injection = InjectionConfig(blocks=blocks, steps=2)
    settings = {"steps": 6, "injection": injection, "step_cache": HUGE}
    teacher = load(flux_dir, cache=cache, **settings)
    calls, x = BlockCalls(teacher), images(1, 16, 24)
    found = teacher.project(x, ids(x))
    # The inversion has 6 evaluations, the first and the 2 with banks in full. The reconstruction begins with 2 that
    # read banks and are references of the 4 after them. Lockstep repeats 2 of the inversion's.
    assert len(calls.last) == 3 + 2 + (2 if cache == "lockstep" else 0)
    assert teacher.take_counts() == {"evaluations": 12, "skipped": 7}
    expected = load(flux_dir, **settings).project(x, ids(x))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_skipped_evaluation_adds_what_the_blocks_added_last(family: tuple[Path, dict[str, Any]]) -> None:
    path, settings = family
    teacher = load(path, step_cache=HUGE, **settings)
    assert teacher.step_cache is not None
    seen: dict[str, torch.Tensor] = {}
    teacher.model.transformer_blocks[0].register_forward_hook(lambda _, __, out: seen.update(first=out[1]))
    teacher.model.norm_out.register_forward_pre_hook(lambda _, given: seen.update(last=given[0]))
    channels = teacher.model.config.in_channels
    generator = torch.Generator().manual_seed(4)
    z, other = (torch.randn(2, 24, channels, generator=generator) for _ in range(2))
    guidance = 2.0 if teacher.model.config.guidance_embeds else None
    seeds = [(z, 0.6), (other, 0.5)]
    states = []
    with torch.no_grad():
        for latents, t in seeds:
            finish = teacher.projector.finish(teacher.prompt)
            ids_ = teacher.model.image_ids(12, 8)
            teacher.projector.velocity(latents, t, ids_, teacher.prompt, guidance, finish=finish)
            states.append(dict(seen))
    full, skipped = states
    torch.testing.assert_close(skipped["last"], skipped["first"] + (full["last"] - full["first"]))


def test_each_image_is_decided_by_itself(family: tuple[Path, dict[str, Any]]) -> None:
    path, settings = family
    x = images(3, 16, 24)
    x[1] = 0.5 + (x[1] - 0.5) * 0.05
    x[2] = x[2].mean()
    mixed = 0
    for threshold in (0.43, 0.7, 0.93, 1.4):
        teacher = load(path, **settings, steps=8, injection=NONE, step_cache=threshold)
        calls = BlockCalls(teacher)
        together, count = teacher.project(x, ids(x)), teacher.take_counts()
        mixed += sum(n < 3 for n in calls.last)
        alone = torch.cat([teacher.project(x[i : i + 1], [str(i)]) for i in range(3)])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
        assert teacher.take_counts() == count
    assert mixed, "no batch in which images differ"


def test_a_projection_starts_anew(flux_dir: Path) -> None:
    teacher = load(flux_dir, steps=6, step_cache=0.2)
    x, other = images(1, 16, 24), images(1, 16, 24, seed=1)
    first = teacher.project(x, ids(x))
    count = teacher.take_counts()
    teacher.project(other, ids(other))
    teacher.take_counts()
    assert torch.equal(teacher.project(x, ids(x)), first)
    assert teacher.take_counts() == count


def test_relative_change() -> None:
    old = torch.tensor([[[1.0, -3.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    new = torch.tensor([[[2.0, -3.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    change = relative_change(new, old)
    assert change[:2].tolist() == [1 / 4, 0.0]
    assert not change[2] < HUGE, "nothing to compare with"


def test_the_first_projection_is_told_once(flux_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = load(flux_dir, steps=4, injection=NONE, step_cache=HUGE)
    x = images(1, 16, 24)
    with caplog.at_level(logging.INFO, logger="gmd_ray"):
        for _ in range(2):
            teacher.project(x, ids(x))
    [line] = [record.getMessage() for record in caplog.records if "step_cache" in record.getMessage()]
    assert line == ("teacher.step_cache=1e+09: in the first projection 75 % of the evaluations were skipped (6 of 8)")


def test_a_color_fix_passes_the_counts_on(flux_dir: Path) -> None:
    teacher = load_teacher(config(flux_dir, step_cache=HUGE, color_fix="adain"))
    assert isinstance(teacher, ColorFixedTeacher)
    x = images(1, 16, 24)
    teacher.project(x, ids(x))
    assert teacher.take_counts()["evaluations"] == 6


def test_the_fingerprint_has_it_where_it_is_set(flux_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gmd_ray.teachers.flux import teacher as module

    written: list[dict[str, Any]] = []
    dumps = module.json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda value, **how: written.append(value) or dumps(value, **how))
    prints = {load_teacher(config(flux_dir, step_cache=threshold)).fingerprint for threshold in (None, 0.1, 0.2)}
    assert len(prints) == 3
    assert [settings.get("step_cache", "absent") for settings in written] == ["absent", 0.1, 0.2]


def test_forwards_are_not_recorded_with_it() -> None:
    cfg = TeacherConfig(compile=True)
    assert records_forwards(cfg, torch.device("cuda"))
    assert not records_forwards(replace(cfg, step_cache=0.1), torch.device("cuda"))


@pytest.mark.parametrize("true_cfg", [None, 3.0])
def test_the_memory_plan_knows_what_is_kept(flux_dir: Path, true_cfg: float | None) -> None:
    teacher = load(flux_dir, prompt=PROMPT, true_cfg=true_cfg, step_cache=HUGE)
    assert teacher.step_cache is not None
    kept: list[int] = []
    end = teacher.step_cache.end_projection

    def spy() -> None:
        entries = teacher.step_cache._kept.values()
        kept.append(sum(entry.first.nbytes + entry.rest.nbytes for entry in entries))
        end()

    teacher.step_cache.end_projection = spy  # type: ignore[method-assign]
    x = images(2, 16, 24)
    teacher.project(x, ids(x))
    work = Workload.from_config(TeacherFiles.read(flux_dir), teacher.cfg, 2, 16, 24, number_bytes=4)
    prompts = 1 if true_cfg is None else 2
    assert kept == [work.step_cache_bytes() * prompts // (prompts + 2)]
    plain = load(flux_dir, prompt=PROMPT, true_cfg=true_cfg)
    assert teacher.memory(2, 512, 512).activations > plain.memory(2, 512, 512).activations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_cache": 0.0}, r"step_cache=0: must lie in \(0, inf\)"),
        ({"method": "ddim"}, "step_cache=0.1: for FLUX only; with teacher.method=ddim"),
        ({"method": "a.plugin:Teacher"}, "step_cache=0.1: for FLUX only"),
        ({"gpus_per_replica": 2, "pool": PoolConfig(num_gpus=2)}, "step_cache=0.1: only for a replica with one GPU"),
        ({"offload": "group"}, "step_cache=0.1: cannot be combined with teacher.offload"),
    ],
    ids=str,
)
def test_refusals(flux_dir: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_teacher(replace(config(flux_dir, step_cache=0.1), **change))


def test_stable_diffusion_refuses_it_by_its_directory(sd_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"step_cache=0.1: for FLUX only; for Stable Diffusion set it to null"):
        load_teacher(config(sd_dir, step_cache=0.1))
