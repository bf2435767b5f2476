"""A teacher on two ranks against one on a single process: the same numbers, half the cache.

See docs/decisions.md, "Several GPUs".
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ConfigError, ModelError, ReplicaLostError
from gmd_ray.teachers import Teacher, load_rank, load_teacher
from gmd_ray.teachers.cost.dimensions import FluxDimensions, dimensions_of
from gmd_ray.teachers.multi_gpu import teacher as sharded
from gmd_ray.teachers.multi_gpu.process_group import RankGroup
from gmd_ray.teachers.multi_gpu.teacher import ShardedTeacher
from tests.teachers.flux.test_caches import HEIGHT, SETTINGS, WIDTH
from tests.teachers.flux.test_teacher import images
from tests.teachers.multi_gpu.shards import alive, footprint, project, project_compiled

both = pytest.mark.parametrize("sharding", ["tensor", "ulysses"])


@pytest.fixture(scope="module")
def pair() -> Iterator[RankGroup]:
    """Two ranks, Gloo; each test loads its own teacher in them."""
    ranks = RankGroup(dict, 2)
    yield ranks
    ranks.close()


def config(path: Path, **change: object) -> TeacherConfig:
    injection = InjectionConfig(blocks="all", steps=2)
    cfg = TeacherConfig(path=str(path), steps=3, prompt="a sharp photo", injection=injection, device="cpu")
    return replace(cfg, **change)  # type: ignore[arg-type]


def assert_same(pair: RankGroup, cfg: TeacherConfig, x: torch.Tensor, atol: float = 1e-5) -> None:
    expected = load_teacher(cfg).project(x, [str(i) for i in range(len(x))])
    found = torch.from_numpy(pair.call(project, replace(cfg, gpus_per_replica=2), x.numpy()))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@both
@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
@pytest.mark.parametrize("injected", SETTINGS, ids=str)
def test_two_ranks_equal_one(
    flux_dir: Path, pair: RankGroup, sharding: str, cache: str, injected: tuple[str, str, str]
) -> None:
    blocks, tokens, tensors = injected
    injection = InjectionConfig(blocks=blocks, tokens=tokens, tensors=tensors, steps=2)
    assert_same(pair, config(flux_dir, injection=injection, cache=cache, sharding=sharding), images(2, 16, 24))


@both
@pytest.mark.parametrize(
    "change",
    [
        {"true_cfg": 3.0},
        {"true_cfg": 3.0, "true_cfg_interval": (0.5, 1.0), "cache": "lockstep"},
        {"solver": "midpoint"},
        {"solver": "midpoint", "cache": "input", "true_cfg": 2.0},
        {"solver": "fireflow"},
        {"strength": 0.5, "nudge": 1.15},
        {"tile": 16, "tile_overlap": 4},
        {"injection": InjectionConfig(blocks="all", steps=0)},
        {"injection": InjectionConfig(blocks="all", steps=None)},
        {"method": "sdedit", "strength": 0.5},
        {"method": "kontext", "strength": 0.5, "true_cfg": 2.0},
        {"color_fix": "wavelet"},
        {"method": "kontext", "tile": 16, "tile_overlap": 4, "color_fix": "adain"},
    ],
    ids=str,
)
def test_variants(flux_dir: Path, pair: RankGroup, sharding: str, change: dict) -> None:
    assert_same(pair, config(flux_dir, sharding=sharding, **change), images(1, 19, 27))  # 35 image tokens


@both
def test_autoencoder_and_bfloat16(flux_vae_dir: Path, pair: RankGroup, sharding: str) -> None:
    assert_same(pair, config(flux_vae_dir, sharding=sharding), images(2, 16, 16))
    # The sum over ranks is rounded once more, which costs as much as bfloat16's own error.
    assert_same(pair, config(flux_vae_dir, sharding=sharding, dtype="bfloat16"), images(2, 16, 16), atol=0.05)


@both
@pytest.mark.parametrize("tensors", ["kv", "v"])
@pytest.mark.parametrize("cache", ["kv", "input"])
def test_cache_and_weights_of_a_rank(flux_dir: Path, pair: RankGroup, sharding: str, cache: str, tensors: str) -> None:
    injection = InjectionConfig(blocks="all", tensors=tensors, steps=2)
    cfg = config(flux_dir, cache=cache, injection=injection, sharding=sharding)
    latents = torch.randn(2, HEIGHT * WIDTH // 4, 48, generator=torch.Generator().manual_seed(4)).numpy()
    whole, parameters = footprint(None, cfg, latents, (HEIGHT, WIDTH))
    half, share = pair.call(footprint, replace(cfg, gpus_per_replica=2), latents, (HEIGHT, WIDTH))
    # Where ranks divide the 5 text tokens, and not channels, the first has one token more.
    assert half == (whole // 2 if (sharding, cache, tensors) != ("ulysses", "input", "kv") else whole * 15 // 29)
    size = FluxDimensions.from_config(json.loads((flux_dir / "transformer" / "config.json").read_text()))
    assert parameters == size.parameters()
    assert 0 < size.split_parameters() < parameters
    assert share == (parameters - size.split_parameters() // 2 if sharding == "tensor" else parameters)


@both
@pytest.mark.parametrize(
    "change",
    [
        {"true_cfg": 3.0},
        {"cache": "input", "solver": "midpoint"},
        {"cache": "lockstep", "injection": InjectionConfig(blocks="single", tokens="image", steps=2)},
        {"tile": 16, "tile_overlap": 4, "injection": InjectionConfig(blocks="last:0.5", tensors="v", steps=2)},
        {"method": "sdedit", "strength": 0.5},
    ],
    ids=str,
)
def test_flux2_on_two_ranks(flux2_dir: Path, pair: RankGroup, sharding: str, change: dict) -> None:
    assert_same(pair, config(flux2_dir, sharding=sharding, **change), images(1, 19, 27))


@both
def test_weights_of_a_rank_of_flux2(flux2_dir: Path, pair: RankGroup, sharding: str) -> None:
    cfg = config(flux2_dir, sharding=sharding)
    latents = torch.randn(2, HEIGHT * WIDTH // 4, 16, generator=torch.Generator().manual_seed(4)).numpy()
    whole, parameters = footprint(None, cfg, latents, (HEIGHT, WIDTH))
    half, share = pair.call(footprint, replace(cfg, gpus_per_replica=2), latents, (HEIGHT, WIDTH))
    size = dimensions_of(json.loads((flux2_dir / "transformer" / "config.json").read_text()))
    assert half == whole // 2
    assert parameters == size.parameters()
    assert share == (parameters - size.split_parameters() // 2 if sharding == "tensor" else parameters)


def test_weights_in_several_files(flux_dir: Path, tmp_path: Path, pair: RankGroup) -> None:
    from diffusers import FluxTransformer2DModel

    path = tmp_path / "flux"
    shutil.copytree(flux_dir, path)
    shutil.rmtree(path / "transformer")
    whole = FluxTransformer2DModel.from_pretrained(flux_dir / "transformer")
    whole.save_pretrained(path / "transformer", max_shard_size="100KB")
    assert len(list((path / "transformer").glob("*.safetensors"))) > 1
    assert_same(pair, config(path), images(1, 16, 16))


@pytest.mark.slow
@both
def test_blocks_of_a_rank_compile_without_a_break(flux_dir: Path, pair: RankGroup, sharding: str) -> None:
    cfg, x = config(flux_dir, cache="input", sharding=sharding), images(1, 16, 16)
    out, graphs, more = pair.call(project_compiled, replace(cfg, gpus_per_replica=2), x.numpy())
    torch.testing.assert_close(torch.from_numpy(out), load_teacher(cfg).project(x, ["0"]), atol=1e-5, rtol=0)
    assert 0 < graphs == more <= 9  # each kind of block runs plain, writes entries, or reads them


@pytest.mark.slow
def test_a_sharded_teacher_is_brought_back_after_the_death_of_a_rank(flux_dir: Path) -> None:
    cfg = config(flux_dir, gpus_per_replica=2)
    one, x = load_teacher(config(flux_dir)), images(2, 16, 16)
    expected = one.project(x, ["a", "b"])
    teacher = load_teacher(cfg)
    assert isinstance(teacher, ShardedTeacher)
    assert isinstance(teacher, Teacher)
    assert teacher.fingerprint == one.fingerprint
    assert teacher.batch_multiple == one.batch_multiple == 4
    torch.testing.assert_close(teacher.project(x, ["a", "b"]), expected, atol=1e-5, rtol=0)

    first = [pid for pid in teacher.pids if pid]
    os.kill(first[1], signal.SIGSTOP)  # keeps the batch running
    threading.Timer(0.5, os.kill, (first[1], signal.SIGKILL)).start()
    with pytest.raises(ReplicaLostError, match="rank 1 of the teacher died"):
        teacher.project(x, ["a", "b"])
    assert not any(alive(pid) for pid in first)

    torch.testing.assert_close(teacher.project(x, ["a", "b"]), expected, atol=1e-5, rtol=0)
    second = [pid for pid in teacher.pids if pid]
    assert len(second) == 2
    assert not {*first} & {*second}
    teacher.close()
    assert not any(alive(pid) for pid in second)


@both
def test_refusals(flux_dir: Path, tmp_path: Path, sharding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, ranks: int) -> None:
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)  # the exchange of free memory
        load_rank(config(path, gpus_per_replica=ranks, sharding=sharding))

    with pytest.raises(ConfigError, match=r"^teacher.gpus_per_replica=3: must divide the model's 2 attention heads$"):
        load(flux_dir, 3)
    path = tmp_path / "flux"
    shutil.copytree(flux_dir, path)
    weights = path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load the weights"):
        load(path, 2)
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load the weights"):
        load(path, 2)
    monkeypatch.setattr(sharded, "load_rank", lambda cfg: object())
    with pytest.raises(ConfigError, match=r"^teacher.gpus_per_replica=2: object cannot be shared; set it to 1$"):
        sharded._load(config(flux_dir, gpus_per_replica=2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"sees 1 GPUs; set teacher.pool.num_gpus=2$"):
        load_teacher(config(flux_dir, gpus_per_replica=2, device="auto"))
