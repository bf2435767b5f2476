"""The cost model of FLUX.2 against PyTorch's own count on real transformers, and the cost of `gmd-klein`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.cost.codec import codec_flops, codec_parameters
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection, dimensions_of
from gmd_ray.teachers.cost.flops import forward_flops, projection_cost
from gmd_ray.teachers.cost.memory import Budget, plan_memory, weight_bytes
from gmd_ray.teachers.cost.workload import TeacherFiles, Workload
from gmd_ray.teachers.flux import attention
from gmd_ray.teachers.flux.families.flux2 import InjectingFlux2
from gmd_ray.teachers.flux.projection import FluxProjector
from tests.benchmarks.teacher import FLUX_DEV, VAE
from tests.teachers.cost.live_memory import LiveMemory
from tests.teachers.flux.test_flux2 import HEIGHT, PROMPT, WIDTH, config, latents, prepare
from tests.teachers.flux.test_teacher import ids, images

GB = 10**9
NAME = {"_class_name": "Flux2Transformer2DModel"}
TINY = {
    "patch_size": 1, "in_channels": 16, "out_channels": None, "num_layers": 2, "num_single_layers": 3,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "mlp_ratio": 3.0,
    "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": True,
}  # fmt: skip
KLEIN = {
    "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "mlp_ratio": 3.0, "axes_dims_rope": (32, 32, 32, 32), "guidance_embeds": False,
}  # fmt: skip
KLEIN_VAE = {"_class_name": "AutoencoderKLFlux2", "block_out_channels": [128, 256, 512, 512]}
FILES = TeacherFiles(dimensions_of({**NAME, **KLEIN}), KLEIN_VAE, {"use_dynamic_shifting": True})
DEV = TeacherFiles(
    FluxDimensions.from_config(FLUX_DEV), {"_class_name": "AutoencoderKL", **VAE}, {"use_dynamic_shifting": True}
)
GMD = load_config(["teacher.preset=gmd"]).teacher
GMD_KLEIN = load_config(["teacher.preset=gmd-klein"]).teacher


def counted(model: nn.Module, batch: int, image: int, text: int) -> int:
    """FLOPs by FlopCounterMode, which does not know the CPU's fused attention, so attention uses matrix products."""
    config = model.config
    device = next(model.parameters()).device
    inputs = {
        "hidden_states": torch.zeros(batch, image, config.in_channels, device=device),
        "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim, device=device),
        "timestep": torch.zeros(1, device=device),
        "guidance": torch.zeros(1, device=device) if config.guidance_embeds else None,
        "img_ids": torch.zeros(image, 4, device=device),
        "txt_ids": torch.zeros(text, 4, device=device),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "batch", "image", "text"),
    [
        ({}, 1, 16, 5),
        ({"guidance_embeds": False}, 3, 24, 7),
        ({"num_layers": 1, "num_single_layers": 0, "out_channels": 5}, 1, 4, 3),
        ({"num_layers": 0, "num_single_layers": 1, "num_attention_heads": 3, "mlp_ratio": 2.5}, 2, 8, 2),
    ],
)
def test_one_forward_and_its_parameters(change: dict, batch: int, image: int, text: int) -> None:
    sizes = {**TINY, **change}
    model = Flux2Transformer2DModel(**sizes)
    size = dimensions_of({**NAME, **sizes})
    assert forward_flops(size, batch, image, text) == counted(model, batch, image, text)
    assert size.parameters() == sum(p.numel() for p in model.parameters())
    modulation = [p for n, p in model.named_parameters() if "modulation" in n or "time_guid" in n or "norm_out" in n]
    assert size.modulation_parameters() == sum(p.numel() for p in modulation)


@pytest.mark.parametrize(
    ("change", "parameters", "tera"),
    [
        ({}, 3_875_544_576, (10.17, 34.82)),
        (
            {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
            9_078_581_248,
            (22.73, 75.51),
        ),
    ],
)
def test_full_size_to_the_last_flop(change: dict, parameters: int, tera: tuple[float, float]) -> None:
    """docs/method.md, "FLUX.2", has the figures of klein 4B."""
    sizes = {**KLEIN, **change}
    with torch.device("meta"):
        model = Flux2Transformer2DModel(**sizes)
        ours = InjectingFlux2(**sizes)
        ours.use_injecting_attention()
    size = dimensions_of({**NAME, **sizes})
    assert size.parameters() == sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in ours.parameters()) == parameters
    assert forward_flops(size, 2, 1024, 512) == counted(model, 2, 1024, 512) == counted(ours, 2, 1024, 512)
    found = [forward_flops(size, 1, tokens, 512) / 1e12 for tokens in (1024, 4096)]
    assert found == pytest.approx(tera, abs=6e-3)


def test_the_autoencoder() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLFlux2()
    assert codec_parameters(KLEIN_VAE) == sum(p.numel() for p in vae.parameters())
    assert codec_flops(KLEIN_VAE, 512, 512) / 1e12 == pytest.approx(1.119 + 2.516, abs=2e-3)


@pytest.mark.parametrize("blocks", ["all", "single", "double"])
@pytest.mark.parametrize("tokens", ["all", "image"])
@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
@torch.no_grad()
def test_a_projection_takes_what_is_predicted(flux2_dir: Path, blocks: str, tokens: str, cache: str) -> None:
    cfg = config(
        flux2_dir, injection=InjectionConfig(blocks=blocks, tokens=tokens, steps=2), cache=cache, max_sequence_length=5
    )
    projector, plan = prepare(flux2_dir, injection=cfg.injection, cache=cache)
    grid = projector.model.image_ids(HEIGHT, WIDTH)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        projector(latents(), grid, plan)
    files = TeacherFiles.read(flux2_dir)
    work = Workload.from_config(replace(files, codec={"factor": 2}), cfg, 2, 2 * HEIGHT, 2 * WIDTH, 4)
    cost = projection_cost(work)
    assert cost.flops == counter.get_total_flops()
    assert cost.table_flops == 0


@pytest.mark.parametrize("side", [256, 512, 768, 1024, 1536])
def test_the_preset_costs_less_than_four_fifths_of_flux_dev(side: int) -> None:
    """The whole projection with its autoencoder, at the presets' own settings; docs/method.md, "FLUX.2"."""

    def tera(files: TeacherFiles, cfg: TeacherConfig) -> float:
        cost = projection_cost(Workload.from_config(files, cfg, 1, side, side))
        return (cost.flops + cost.table_flops + cost.codec_flops) / 1e12

    klein, dev = tera(FILES, GMD_KLEIN), tera(DEV, GMD)
    assert klein / dev < 0.8
    if side == 512:
        assert (klein, dev) == pytest.approx((760, 1073), abs=1)


def test_the_preset_injects_as_deep_as_gmd() -> None:
    klein, dev = Injection.from_config(GMD_KLEIN, FILES.size), Injection.from_config(GMD, DEV.size)
    assert (klein.double, klein.single, klein.steps) == (0, 8, 5)
    assert klein.single / FILES.size.blocks == pytest.approx(dev.single / DEV.size.blocks, abs=0.01)


def test_memory_of_klein() -> None:
    """All of it on one small card, without tables: docs/method.md, "FLUX.2"."""
    found = plan_memory(FILES, GMD_KLEIN, 1, 512, 512, Budget(24 * GB, 64 * GB))
    assert (found.cache, found.cache_location, found.modulation, found.tables) == ("kv", "device", "device", 0)
    assert found.weights == pytest.approx((7.75 + 0.17) * GB, abs=0.01 * GB)
    assert found.cached == 5 * 8 * 2 * 1536 * 3072 * 2
    literal = replace(GMD_KLEIN, injection=InjectionConfig(blocks="all", steps=None))
    assert plan_memory(FILES, literal, 1, 1024, 1024, Budget(24 * GB, 64 * GB)).cache_location == "host"
    offloaded = replace(GMD_KLEIN, offload="group")
    assert plan_memory(FILES, offloaded, 1, 512, 512, Budget(6 * GB, 64 * GB)).weights < 2 * GB
    half = weight_bytes(FILES.size, replace(GMD_KLEIN, gpus_per_replica=2), 2, "device")
    assert half == 2 * (FILES.size.parameters() - FILES.size.split_parameters() // 2)
    assert FILES.size.split_parameters() / FILES.size.parameters() == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("cache", ["kv", "input", "lockstep"])
def test_a_tiny_teacher_holds_what_was_planned(flux2_dir: Path, cache: str) -> None:
    cfg = config(flux2_dir, cache=cache, max_sequence_length=5, steps=4, prompt=PROMPT)
    files = TeacherFiles.read(flux2_dir)
    found = plan_memory(files, cfg, 2, 22, 30, Budget(GB, 4 * GB), 4)
    teacher = load_teacher(cfg)
    assert found.weights == sum(p.nbytes for p in [*teacher.model.parameters(), *teacher.codec.vae.parameters()])
    kept = []
    reconstruct = FluxProjector.reconstruct

    def look(self: FluxProjector, noise: torch.Tensor, left: dict, *args: object) -> torch.Tensor:
        kept.append(sum(x.nbytes for bank in left.values() for x in _tensors(bank)))
        return reconstruct(self, noise, left, *args)

    with mock.patch.object(FluxProjector, "reconstruct", look):
        teacher.project(images(2, 22, 30), ids(images(2, 22, 30)))
    if cache != "lockstep":
        assert kept == [found.cached]


def _tensors(bank: dict) -> list[torch.Tensor]:
    from gmd_ray.teachers.flux.cache import tensors

    return tensors(bank) if isinstance(bank, dict) else []


@torch.no_grad()
def test_activations_of_klein() -> None:
    """A close upper bound at full size, with attention that keeps no matrix."""
    with torch.device("meta"):
        model = InjectingFlux2(**KLEIN).to(torch.bfloat16)
        model.use_injecting_attention()
        for batch, image, text in ((1, 1024, 512), (2, 4096, 64)):
            shape = {"dtype": torch.bfloat16}
            no_matrix = mock.patch.object(attention, "dispatch_attention_fn", lambda q, k, v, **_: torch.empty_like(q))
            with no_matrix, LiveMemory() as memory:
                model(
                    torch.empty(batch, image, 128, **shape), torch.empty(batch, text, 7680, **shape), torch.empty(1),
                    torch.empty(image, 4), torch.empty(text, 4),
                )  # fmt: skip
            side = int((image * 256) ** 0.5)
            work = Workload(FILES.size, batch=batch, height=side, width=side, text=text, steps=1)
            assert 0.9 < memory.peak / work.activation_bytes() <= 1
