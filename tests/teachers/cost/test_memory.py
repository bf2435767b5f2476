"""The memory plan against real tensors, and for FLUX.1-dev against the tables of docs/decisions.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from gmd_ray.config import InjectionConfig, PoolConfig, TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost import memory
from gmd_ray.teachers.cost.codec import codec_activations
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection
from gmd_ray.teachers.cost.memory import USABLE, Budget, _free_host, modulation_home, plan_memory
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux import attention
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from gmd_ray.teachers.flux.modulation import ModulationTables
from tests.benchmarks.teacher import FLUX_DEV, VAE
from tests.teachers.cost.live_memory import LiveMemory
from tests.teachers.flux.test_teacher import config, ids, images

GB = 10**9
DEV = TeacherFiles(
    FluxDimensions.from_config(FLUX_DEV), {"_class_name": "AutoencoderKL", **VAE}, {"use_dynamic_shifting": True}
)
LITERAL = TeacherConfig(injection=InjectionConfig(blocks="all", steps=None))
GMD = TeacherConfig()
H200 = Budget(device=140 * GB, host=256 * GB)


def plan(cfg: TeacherConfig, side: int, batch: int = 1, budget: Budget = H200, **change: Any) -> Any:
    return plan_memory(DEV, replace(cfg, **change), batch, side, side, budget)


def test_flux_dev_on_a_large_card() -> None:
    """Plans for an H200, and the 6.56 GB that modulation tables free: docs/decisions.md, "Memory and cost"."""
    gmd = plan(GMD, 512)
    assert (gmd.cache, gmd.cache_location, gmd.modulation) == ("kv", "device", "device")
    assert gmd.cached == pytest.approx(1.7 * GB, abs=0.06 * GB)
    assert gmd.weights == pytest.approx((23.80 + 0.17) * GB, abs=0.01 * GB)
    assert gmd.weights - plan(GMD, 512, modulation="host").weights == pytest.approx(6.56 * GB, abs=0.01 * GB)
    four = plan(LITERAL, 512, 4, modulation="host")
    assert four.cached == pytest.approx(107.6 * GB, abs=0.1 * GB)
    assert (four.cache_location, four.cache) == ("device", "kv")
    assert plan(LITERAL, 512, 4).modulation == "host"  # auto makes room for the cache on the device
    eight = plan(LITERAL, 512, 8)
    assert (eight.cache, eight.cache_location, eight.modulation) == ("kv", "host", "device")
    assert plan(LITERAL, 512, 8, cache="input", modulation="host").cache_location == "device"
    assert plan(LITERAL, 1024).cached == pytest.approx(80.7 * GB, abs=0.1 * GB)


def test_the_cache_moves_as_memory_shrinks() -> None:
    small_host = Budget(device=40 * GB, host=12 * GB)
    assert plan(LITERAL, 512, budget=Budget(60 * GB, 256 * GB)).cache_location == "device"
    host = plan(LITERAL, 512, budget=replace(small_host, host=64 * GB))
    assert (host.cache, host.cache_location) == ("kv", "host")
    assert host.resident >= 2
    assert host.cached == host.resident * 57 * 2 * 1536 * 3072 * 2
    assert host.host >= (25 - host.resident) * 1.07e9
    assert host.device <= 40 * GB
    assert plan(LITERAL, 512, budget=small_host).cache == "lockstep"
    assert plan(LITERAL, 512, budget=replace(small_host, host=64 * GB), host_cache_gb=1.0).cache == "lockstep"
    rounded = plan(LITERAL, 512, cache_dtype="fp8")
    assert rounded.cached == pytest.approx(plan(LITERAL, 512).cached * (0.5 + 1 / 128) + 1.076e9, rel=1e-3)


def test_recordings_are_left_out_where_they_do_not_fit() -> None:
    """They cost no arrangement its place, and no image its projection."""
    compiled, plain = plan(GMD, 1024, compile=True), plan(GMD, 1024)
    # A second set of activations, and one bank of 18 single blocks: docs/decisions.md, "Memory and cost".
    more = 18 * 4608 * 3072 * 2 + 18 * 2 * 4608 * 3072 * 2
    assert compiled.records
    assert compiled.device == plain.device + more
    tight = Budget(int((plain.device + more / 2) / 0.94), 256 * GB)
    found = plan(GMD, 1024, budget=tight, compile=True, modulation="device")
    assert not found.records
    assert (found.cache, found.cache_location, found.device) == ("kv", "device", plain.device)
    unforced = plan(GMD, 1024, budget=tight, compile=True)
    assert (unforced.records, unforced.modulation) == (True, "host")
    none = {"injection": InjectionConfig(steps=0), "modulation": "device"}
    least = plan(GMD, 1024, **none).device
    assert not plan(GMD, 1024, budget=Budget(int(least / 0.94) + 1, 256 * GB), compile=True, **none).records


def test_small_cards() -> None:
    card = Budget(device=24 * GB, host=64 * GB)
    assert plan(GMD, 512, budget=card).modulation == "host"
    assert plan(GMD, 512, budget=card, precision="fp8").weights < 16 * GB
    offloaded = plan(GMD, 512, budget=Budget(8 * GB, 64 * GB), offload="group")
    assert offloaded.weights < 2 * GB
    assert offloaded.modulation == "host"


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError, match=r"1 x 512 x 512 pixels need at least \d+\.\d\d GB \(weights 17\.\d\d, .*usable"
    ) as caught:
        plan(GMD, 512, budget=Budget(12 * GB, 64 * GB))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"usable are 47\.00 GB"):
        plan(LITERAL, 1024, 4, budget=Budget(50 * GB, 20 * GB), cache_location="device")


def test_the_home_of_the_modulation_is_chosen_before_an_image_is_seen() -> None:
    for cfg, budget, home in (
        (GMD, H200, "device"),
        (GMD, Budget(24 * GB, 64 * GB), "host"),
        (replace(GMD, tile=512, pool=PoolConfig(batch_size=1)), Budget(30 * GB, 64 * GB), "device"),
    ):
        assert modulation_home(DEV, cfg, budget) == home
    with pytest.raises(ConfigError, match="1 x 16 x 16 pixels need"):
        modulation_home(DEV, GMD, Budget(10 * GB, 64 * GB))


@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
@pytest.mark.parametrize("location", ["device", "host"])
def test_a_tiny_teacher_holds_what_was_planned(flux_vae_dir: Path, cache: str, location: str) -> None:
    cfg = config(flux_vae_dir, cache=cache, cache_location=location, max_sequence_length=5, steps=4)
    files = TeacherFiles.read(flux_vae_dir)
    found = plan_memory(files, replace(cfg, modulation="host"), 2, 22, 30, Budget(GB, 4 * GB), 4)
    teacher = load_teacher(cfg)
    weights = [*teacher.model.parameters(), *teacher.codec.vae.parameters()]
    assert found.weights == sum(p.nbytes for p in weights)
    work = Workload(
        files.size, batch=2, height=22, width=30, text=5, steps=4, multiple=8, number_bytes=4, cache=cache,
        injection=Injection.from_config(cfg, files.size),
    )  # fmt: skip
    assert found.cached == work.cache_bytes()  # two evaluations: both stay on the device
    x = images(2, 22, 30)
    teacher.project(x, ids(x))
    tables = teacher.projector.modulation
    assert tables is not None
    assert 0 < tables.nbytes() <= found.tables


def test_a_teacher_that_cannot_fit_reads_no_weights(flux_dir: Path) -> None:
    with (
        mock.patch.object(Budget, "of", return_value=Budget(1000, 1000)),
        mock.patch.object(InjectingFlux, "from_pretrained", side_effect=AssertionError),
        pytest.raises(ConfigError, match="need at least"),
    ):
        load_teacher(config(flux_dir))


def test_a_teacher_recomputes_what_does_not_fit(flux_dir: Path) -> None:
    x = images(1, 64, 64)
    injection = InjectionConfig(blocks="all", steps=None)
    settings = config(flux_dir, steps=8, injection=injection, max_sequence_length=5)
    plain = load_teacher(settings)
    files = TeacherFiles.read(flux_dir)
    full, less = (
        plan_memory(files, replace(settings, **c), 1, 64, 64, Budget(GB, GB), 4) for c in ({}, {"cache": "lockstep"})
    )
    assert less.device < full.device
    budget = Budget((full.device + less.device) // 2, GB, shared=True)
    with mock.patch.object(Budget, "of", return_value=budget):
        tight = load_teacher(settings)
    seen: list[int] = []
    tight.model.proj_out.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(tight.project(x, ids(x)), plain.project(x, ids(x)), atol=1e-5, rtol=0)
    assert len(seen) == 3 * 8
    assert tight.fingerprint == plain.fingerprint


@pytest.mark.parametrize("method", ["inversion", "sdedit", "kontext"])
def test_every_method_refuses_an_image_that_cannot_fit(flux_dir: Path, method: str) -> None:
    cfg = config(flux_dir, method=method, prompt="a sharp photo", modulation="device")
    # The table's five tokens count, not the 512 of the settings.
    files, there = TeacherFiles.read(flux_dir), replace(cfg, max_sequence_length=5)
    need = plan_memory(files, there, 2, 64, 64, Budget(GB, GB), 4)
    budget = Budget(int(need.device / USABLE) + 1, GB, shared=True)
    with mock.patch.object(Budget, "of", return_value=budget):
        teacher = load_teacher(cfg)
    assert teacher.memory(2, 64, 64) == need
    x = images(2, 64, 64)
    assert teacher.project(x, ids(x)).shape == x.shape
    larger = images(2, 64, 80)
    with pytest.raises(ConfigError, match="2 x 64 x 80 pixels need at least"):
        teacher.project(larger, ids(larger))


def test_kontext_sees_twice_the_image_and_keeps_nothing() -> None:
    edit, kontext = (plan(replace(GMD, method=method), 1024, batch=8) for method in ("sdedit", "kontext"))
    assert edit.cached == kontext.cached == 0
    # With 8 images the transformer's activations exceed the autoencoder's, which takes one image at a time.
    assert kontext.activations - edit.activations == 18 * 8 * 4096 * 3072 * 2
    assert edit == plan(replace(GMD, injection=InjectionConfig(steps=0)), 1024, batch=8)


def test_free_memory_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the allocator holds unused is free; another model's tensors are not."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15 * GB)
    monkeypatch.setattr(memory, "_free_host", lambda: 400 * GB)
    monkeypatch.setattr(memory, "_gpus", lambda: 4)
    assert Budget.of(torch.device("cuda")) == Budget(55 * GB, 100 * GB)
    assert Budget.of(torch.device("cpu")) == Budget(400 * GB, 400 * GB, shared=True)


@pytest.mark.parametrize(
    ("folder", "most", "now", "cached"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_free_memory_of_a_container(tmp_path: Path, folder: str, most: str, now: str, cached: str) -> None:
    """A container counts its file cache as used; the inactive part is free."""
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup" / folder
    cgroup.mkdir(parents=True)
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable: 90000 kB\n")
    assert _free_host(meminfo, tmp_path / "cgroup") == 90000 * 1024
    (cgroup / most).write_text("64000000\n")
    (cgroup / now).write_text("60000000\n")
    (cgroup / "memory.stat").write_text(f"anon 1\n{cached} 50000000\n")
    assert _free_host(meminfo, tmp_path / "cgroup") == 54_000_000
    (cgroup / most).write_text("max\n" if folder == "." else "9223372036854771712\n")
    assert _free_host(meminfo, tmp_path / "cgroup") == 90000 * 1024


def test_the_bound_on_host_memory_is_the_replicas() -> None:
    host = plan(LITERAL, 512, budget=Budget(40 * GB, 64 * GB), cache_location="host")
    assert host.host > 10 * GB
    two = {"gpus_per_replica": 2, "sharding": "ulysses", "budget": Budget(26 * GB, 64 * GB), "cache_location": "host"}
    assert 0 < plan(LITERAL, 512, **two).host < 11 * GB
    assert plan(LITERAL, 512, **two, host_cache_gb=22.0).host > 5 * GB
    with pytest.raises(ConfigError, match=r"of host memory \(of 5\.00\)"):
        plan(LITERAL, 512, **two, host_cache_gb=10.0)


@torch.no_grad()
def test_activations_of_flux_dev() -> None:
    """`Family.widths` and CODEC_WIDTHS are close upper bounds at full size, with attention that keeps no matrix."""
    with torch.device("meta"):
        model = InjectingFlux(**FLUX_DEV).to(torch.bfloat16)
        model.use_injecting_attention()
        ModulationTables(model, torch.device("meta"))
        for batch, image, text in ((1, 1024, 512), (2, 4096, 64)):
            rows = {name: torch.empty(1, (3 if "single" in name else 12) * 3072) for name in model.block_names()}
            rows = {name: row.to(torch.bfloat16) for name, row in rows.items()}
            rows["norm_out"] = torch.empty(1, 2 * 3072, dtype=torch.bfloat16)
            shape = {"dtype": torch.bfloat16}
            no_matrix = mock.patch.object(attention, "dispatch_attention_fn", lambda q, k, v, **_: torch.empty_like(q))
            with no_matrix, LiveMemory() as memory:
                model(
                    torch.empty(batch, image, 64, **shape), torch.empty(batch, text, 4096, **shape), None, None,
                    torch.empty(image, 3), torch.empty(text, 3), modulation=rows,
                )  # fmt: skip
            side = int((image * 256) ** 0.5)
            work = Workload(DEV.size, batch=batch, height=side, width=side, text=text, steps=1)
            assert 0.9 < memory.peak / work.activation_bytes() <= 1
        vae = AutoencoderKL(**VAE).to(torch.bfloat16)
        for side in (512, 1024):
            no_matrix = mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: torch.empty_like(q))
            with no_matrix, LiveMemory() as memory:
                vae.decode(torch.empty(1, 16, side // 8, side // 8, **shape))
            assert 0.7 < memory.peak / codec_activations(DEV.codec, side * side) <= 1
