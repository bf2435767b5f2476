"""The cost model against PyTorch's own count on real transformers, and against the tables of docs/decisions.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ConfigError
from gmd_ray.teachers.cost.codec import codec_flops
from gmd_ray.teachers.cost.dimensions import FluxDimensions, Injection, image_tokens
from gmd_ray.teachers.cost.flops import forward_flops, projection_cost
from gmd_ray.teachers.cost.workload import Workload, bank_bytes
from gmd_ray.teachers.flux.families.flux1 import InjectingFlux
from tests.benchmarks.teacher import VAE

TINY = {
    "patch_size": 1, "in_channels": 12, "out_channels": None, "num_layers": 2, "num_single_layers": 3,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20,
    "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
FLUX_DEV = {
    "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
DEV = FluxDimensions.from_config(FLUX_DEV)
LITERAL = Injection(double=19, single=38, steps=25)
LATE = Injection(double=0, single=18, steps=5)
EVERYWHERE = (0.0, 1.0)
"""True CFG at all noise levels."""


def counted(model: nn.Module, batch: int, image: int, text: int, **routes: Any) -> int:
    """FLOPs by FlopCounterMode, which does not know the CPU's fused attention, so attention uses matrix products."""
    config = model.config
    inputs = {
        "hidden_states": torch.zeros(batch, image, config.in_channels),
        "encoder_hidden_states": torch.zeros(batch, text, config.joint_attention_dim),
        "pooled_projections": torch.zeros(batch, config.pooled_projection_dim),
        "timestep": torch.zeros(batch),
        "guidance": torch.zeros(batch) if config.guidance_embeds else None,
        "img_ids": torch.zeros(image, 3),
        "txt_ids": torch.zeros(text, 3),
    }
    device = next(model.parameters()).device
    inputs = {key: x if x is None else x.to(device) for key, x in inputs.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(**inputs, **routes)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "batch", "image", "text"),
    [
        ({}, 1, 16, 5),
        ({}, 3, 24, 7),
        ({"guidance_embeds": False}, 2, 9, 1),
        ({"num_layers": 1, "num_single_layers": 0, "out_channels": 5}, 1, 4, 3),
        ({"num_layers": 0, "num_single_layers": 1, "num_attention_heads": 3}, 2, 8, 2),
        ({"patch_size": 2, "pooled_projection_dim": 6}, 1, 6, 4),
    ],
)
def test_one_forward_and_its_parameters(change: dict, batch: int, image: int, text: int) -> None:
    config = {**TINY, **change}
    model = FluxTransformer2DModel(**config)
    size = FluxDimensions.from_config(config)
    assert forward_flops(size, batch, image, text) == counted(model, batch, image, text)
    assert size.parameters() == sum(p.numel() for p in model.parameters())
    modulation = [p for name, p in model.named_parameters() if ".linear." in name or "time_text_embed" in name]
    assert size.modulation_parameters() == sum(p.numel() for p in modulation)


class Skipped(nn.Module):
    """A projection of the first `live` tokens alone, as a replay makes it that skips replaced keys and values."""

    def __init__(self, inner: nn.Linear, live: int) -> None:
        super().__init__()
        self.inner, self.live = inner, live

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done = self.inner(x[:, : self.live])
        return torch.cat([done, x.new_zeros(len(x), x.shape[1] - self.live, done.shape[2])], dim=1)


@pytest.mark.parametrize(
    ("double", "single", "keys", "text"),
    [
        (2, 3, True, True),  # no image token sees the text
        (2, 3, False, True),
        (2, 3, True, False),
        (1, 2, True, False),
        (0, 2, True, True),
        (1, 0, False, False),
    ],
)
def test_a_replay_without_what_injection_replaces(double: int, single: int, keys: bool, text: bool) -> None:
    batch, image, words = 2, 12, 5
    size = FluxDimensions.from_config(TINY)
    injection = Injection(double=double, single=single, steps=1, keys=keys, text=text)
    dead = keys and text and double + single == 5
    assert injection.kills_text(size) == dead

    model = InjectingFlux(**TINY)
    model.use_injecting_attention()
    kv_in = {}
    names = [n for n in model.block_names() if int(n.split(".")[1]) < (single if "single" in n else double)]
    for name in names:
        attn = model.get_submodule(name).attn
        for kind in ("k", "v") if keys else ("v",):
            live = words if "single" in name and not text else 0
            setattr(attn, f"to_{kind}", Skipped(getattr(attn, f"to_{kind}"), live))
            if "single" not in name and text:
                setattr(attn, f"add_{kind}_proj", Skipped(getattr(attn, f"add_{kind}_proj"), 0))
        bank = torch.zeros(batch, image + (words if text else 0), 2, 16)
        kv_in[name] = (bank if keys else None, bank)
    measured = counted(model, batch, image, 0 if dead else words, kv_in=kv_in, kv_from=0 if text else words)
    assert forward_flops(size, batch, image, words, injection) == measured
    assert measured < forward_flops(size, batch, image, words)
    held = {id(t): t.nbytes for kv in kv_in.values() for t in kv if t is not None}
    assert bank_bytes(size, batch, image, words, injection, 4) == sum(held.values()) * (2 if keys else 1)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (21.5, 17.7, 15.8, 14.9)),
        (768, 768, (41.9, 37.6, 35.5, 34.5)),
        (720, 1280, (65.0, 60.2, 57.9, 56.7)),
        (1024, 1024, (74.4, 69.5, 67.0, 65.8)),
    ],
)
def test_tera_flops_of_flux_dev(height: int, width: int, expected: tuple[float, ...]) -> None:
    """The table of docs/decisions.md, "Memory and cost"."""
    image = image_tokens(height, width)
    found = [forward_flops(DEV, 1, image, text) / 1e12 for text in (512, 256, 128, 64)]
    assert found == pytest.approx(expected, abs=0.06)


def test_flux_dev_at_full_size_to_the_last_flop() -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel(**FLUX_DEV)
    assert DEV.parameters() == sum(p.numel() for p in model.parameters()) == pytest.approx(11.901e9, abs=5e5)
    assert DEV.modulation_parameters() == pytest.approx(3.280e9, abs=5e5)
    assert forward_flops(DEV, 2, 1024, 512) == counted(model, 2, 1024, 512)


@pytest.mark.parametrize(
    ("injection", "side", "expected"),
    [
        (LITERAL, 512, 12.1),
        (LITERAL, 1024, 57.3),
        (Injection(double=19, single=38, steps=25, text=False), 512, 19.3),
        (Injection(double=19, single=38, steps=25, text=False), 1024, 65.6),
    ],
)
def test_tera_flops_of_a_replay(injection: Injection, side: int, expected: float) -> None:
    """docs/method.md, "Injection", has the first of these figures."""
    flops = forward_flops(DEV, 1, image_tokens(side, side), 512, injection)
    assert flops / 1e12 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("side", "text", "options", "seconds"),
    [
        (512, 512, {"steps": 15}, 0.82),
        (512, 512, {"steps": 25}, 1.36),
        (512, 512, {"steps": 28}, 1.52),
        (512, 512, {"steps": 50}, 2.72),
        (512, 512, {"steps": 25, "true_cfg": EVERYWHERE}, 2.04),
        (512, 512, {"steps": 25, "solver": "midpoint"}, 2.72),
        (512, 64, {"steps": 25}, 0.94),
        (1024, 512, {"steps": 25}, 4.71),
        (1024, 512, {"steps": 25, "true_cfg": EVERYWHERE}, 7.06),
        (1024, 64, {"steps": 25, "solver": "midpoint"}, 8.33),
        # Without the work that the literal injection makes superfluous.
        (512, 512, {"steps": 25, "injection": LITERAL}, 1.06),
        (1024, 512, {"steps": 25, "injection": LITERAL}, 4.17),
    ],
)
def test_seconds_at_790_tera_flops(side: int, text: int, options: dict, seconds: float) -> None:
    """Seconds of a projection at a speed of 790 TFLOP/s."""
    cost = projection_cost(Workload(DEV, batch=1, height=side, width=side, text=text, **options))
    assert cost.flops / 790e12 == pytest.approx(seconds, abs=0.011)


@pytest.mark.parametrize(
    ("injection", "expected"),
    [
        (LITERAL, (1.076, 0.762, 2.880, 3.228, 2.914)),
        (Injection(double=19, single=38, steps=25, text=False), (0.717, 0.717, 2.521, 2.869, 2.869)),
        (Injection(double=19, single=38, steps=25, keys=False), (0.538, 0.381, 1.440, 1.614, 1.457)),
        (LATE, (0.340, 0.241, 0.910, 1.019, 0.920)),
        (Injection(double=0, single=18, steps=5, keys=False), (0.170, 0.120, 0.455, 0.510, 0.460)),
        (Injection(double=4, single=5, steps=25, text=False), (0.113, 0.113, 0.398, 0.453, 0.453)),
    ],
)
def test_gigabytes_of_keys_and_values(injection: Injection, expected: tuple[float, ...]) -> None:
    """The table of docs/decisions.md, "Memory and cost"."""
    shapes = [(512, 512, 512), (512, 512, 64), (720, 1280, 512), (1024, 1024, 512), (1024, 1024, 64)]
    found = [bank_bytes(DEV, 1, image_tokens(h, w), text, injection) / 1e9 for h, w, text in shapes]
    assert found == pytest.approx(expected, abs=6e-4)


def test_gigabytes_of_a_whole_image() -> None:
    """The sizes of docs/decisions.md, "Memory and cost"; RF-Solver's two evaluations an interval keep twice as much."""

    def gigabytes(side: int, steps: int, injection: Injection, solver: str = "euler") -> float:
        cost = projection_cost(
            Workload(DEV, batch=1, height=side, width=side, text=512, steps=steps, injection=injection, solver=solver)
        )
        assert cost.weight_bytes == pytest.approx(23.80e9, abs=5e6)
        return cost.cache_bytes / 1e9

    assert [gigabytes(s, 25, LITERAL) for s in (512, 1024)] == pytest.approx([26.9, 80.7], abs=0.06)
    assert [gigabytes(s, 25, LATE) for s in (512, 1024)] == pytest.approx([1.7, 5.1], abs=0.06)
    assert gigabytes(512, 25, LATE, "midpoint") == 2 * gigabytes(512, 25, LATE)
    assert gigabytes(512, 25, LATE, "fireflow") == gigabytes(512, 25, LATE)


def test_evaluations_of_each_solver() -> None:
    def forwards(solver: str, **options: Any) -> int:
        work = Workload(DEV, batch=1, height=64, width=64, text=8, steps=8, solver=solver, **options)
        return projection_cost(work).forwards

    assert [forwards(solver) for solver in ("euler", "midpoint", "fireflow")] == [16, 32, 18]
    assert forwards("fireflow", true_cfg=EVERYWHERE) == 27
    with pytest.raises(ConfigError, match="did you mean 'euler'"):
        forwards("eulr")
    with pytest.raises(ConfigError, match=r"at most teacher\.steps=8"):
        forwards("euler", injection=LITERAL)


def test_injection_from_the_settings() -> None:
    def found(injection: InjectionConfig) -> Injection:
        return Injection.from_config(TeacherConfig(steps=25, injection=injection), DEV)

    assert found(InjectionConfig()) == LATE
    assert found(InjectionConfig(blocks="all", steps=0)).blocks == 0
    assert found(InjectionConfig(blocks="all", steps=None)) == LITERAL
    names = ["transformer_blocks.0", "transformer_blocks.18", "single_transformer_blocks.6"]
    vital = InjectionConfig(blocks=names, tokens="image", tensors="v", steps=3)
    assert found(vital) == Injection(double=2, single=1, steps=3, keys=False, text=False)


@pytest.mark.parametrize(("side", "expected"), [(512, 1.12 + 2.51), (1024, 4.88 + 10.47)])
def test_tera_flops_of_the_autoencoder(side: int, expected: float) -> None:
    """3.6 and 15.4 TFLOP for encoding and decoding: docs/decisions.md, "Memory and cost"."""
    assert codec_flops({"_class_name": "AutoencoderKL", **VAE}, side, side) / 1e12 == pytest.approx(expected, abs=0.02)


def test_true_cfg_on_an_interval_and_recomputed_entries_are_counted() -> None:
    def forwards(**options: Any) -> int:
        times = [1 - i / 8 for i in range(9)]
        shape = {"batch": 1, "height": 64, "width": 64, "text": 8, "steps": 8, "times": times}
        return projection_cost(Workload(DEV, **shape, **options)).forwards

    assert forwards(true_cfg=(0.5, 0.75)) == 8 + 8 + 3
    assert forwards(injection=LATE, cache="lockstep") == 8 + 8 + 5
    assert forwards(tile=48, tile_overlap=16) == 4 * 16


def test_a_token_is_sixteen_pixels_padded() -> None:
    assert image_tokens(513, 16) == 33
