"""Settings of the teacher. docs/method.md explains the method and gives the reasons for the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections import checks
from gmd_ray.config.sections.models import PoolConfig, device_setting
from gmd_ray.config.sections.setting import section, setting


@dataclass
class InjectionConfig:
    """Attention keys and values of the inversion that replace those of the reconstruction."""

    tensors: str = setting("kv", "kv: keys and values (paper). v: values alone (RF-Solver).", choices=("kv", "v"))
    blocks: Any = setting(
        "late_single",
        "Attention blocks: all, single, double, late_single (single blocks 20 and up, as RF-Solver), or a list of "
        "module names; for a U-Net all, down, mid, up, or a list. For every model last:SHARE, the last blocks by "
        "depth: last:0.5 is the later half of all blocks in the order in which they run.",
        check=checks.blocks,
        kind="text, or list of texts",
    )
    tokens: str = setting("all", "Tokens whose keys and values are replaced.", choices=("all", "image"))
    steps: int | float | None = setting(
        5,
        "The first n, noisiest, intervals of the reconstruction, or a share of all of them below 1: 0.2 is the first "
        "fifth. null takes all of them.",
        ge=0,
        check=checks.intervals,
        kind="whole number in [0, inf), share in (0, 1), or null",
    )


@dataclass
class TeacherConfig:
    """The frozen text-to-image flow model that pulls a restored image onto the manifold of natural images."""

    path: str | None = setting(None, "Local directory, URL or hub id, in the layout of diffusers.")
    method: str = setting(
        "inversion",
        "inversion (paper): with FLUX or Stable Diffusion, whichever lies in `path`. ddim: the same by name, Stable "
        "Diffusion alone. sdedit: noise drawn to the level `strength`, then the reconstruction alone. kontext: FLUX.1 "
        "Kontext, which follows the instruction in `prompt`. `package.module:factory`: a Teacher of your own.",
        choices=("inversion", "sdedit", "kontext", "ddim"),
        check=checks.teacher_plugin,
        kind="one of inversion, sdedit, kontext, ddim, or package.module:factory",
    )
    preset: str | None = setting(
        None,
        "A method by name: gmd, early, gmd-klein, gmd-literal, rf-solver, kv-edit, vital, none, sdedit, kontext or "
        "ddim. It fills the settings that tell methods apart when settings are loaded; those given beside it or after "
        "it win.",
    )
    licence: str | None = setting(
        None,
        "Licence class of the model, by your own reading or by an agreement with its makers; null takes what is known "
        "of it or what its directory says (`gmd-ray ls teachers`). It changes no pixel.",
        choices=("commercial", "non-commercial"),
    )
    allow_distilled: bool = setting(
        False,
        "Invert a model whose name or files say that it is step-distilled, as FLUX.1-schnell's do. It is refused "
        "otherwise, because an inversion of such a model does not lead back to the photo.",
    )
    solver: str = setting(
        "euler",
        "euler (paper). midpoint (RF-Solver): second order, two evaluations in each interval. fireflow: second order, "
        "one evaluation.",
        choices=("euler", "midpoint", "fireflow"),
    )
    steps: int = setting(25, "Number of intervals of each of the two passes.", ge=1)
    strength: float = setting(
        1.0,
        "Noise level at which the inversion stops and the reconstruction starts; 1.0 is pure noise (paper).",
        gt=0,
        le=1,
    )
    schedule: str = setting(
        "auto",
        "Time grid of both passes. linear: FLUX.1's shift, which grows with the tokens of the image alone. empirical: "
        "FLUX.2's, which moves a grid of few steps towards noise. auto: as the model's own pipeline has it, for FLUX.1 "
        "by the directory's scheduler_config.json, for FLUX.2 empirical.",
        choices=("auto", "linear", "empirical"),
    )
    nudge: float = setting(
        1.0,
        "Factor on the latents that are inverted, by which the result is divided again; 1.15 helps smooth images to "
        "invert.",
        gt=0,
    )
    prompt: str = setting("", "Prompt of the reconstruction; the empty text is the null prompt.")
    inversion_prompt: str = setting("", "Prompt of the inversion; the empty text is the null prompt (paper).")
    guidance: float = setting(
        2.0, "Distilled guidance embedding of the reconstruction; ignored by models without one.", ge=0
    )
    inversion_guidance: float = setting(
        1.0, "Distilled guidance embedding of the inversion; a higher one breaks the inversion.", ge=0
    )
    true_cfg: float | None = setting(
        None,
        "Weight w of v_null + w (v_prompt - v_null) in the reconstruction; null runs the prompt alone.",
        ge=0,
    )
    true_cfg_interval: tuple[float, float] = setting(
        (0.0, 1.0),
        "Noise levels between which `true_cfg` acts, both ends included; elsewhere the prompt runs alone, at half the "
        "cost.",
        check=checks.noise_levels,
        ge=0,
        le=1,
    )
    injection: InjectionConfig = section(InjectionConfig)
    cache: str = setting(
        "kv",
        "What the inversion leaves for the injection. kv: keys and values. input: the inputs of the blocks, half the "
        "memory if both are injected. lockstep: nothing but the memory of one evaluation, for as many more forward "
        "passes as are injected. The results are equal up to rounding.",
        choices=("kv", "input", "lockstep"),
    )
    cache_location: str = setting(
        "auto",
        "Where the cache waits. host: copied out and back beside the computation. auto: by the memory plan, which may "
        "also turn to lockstep (FLUX alone; Stable Diffusion has no plan). The results are equal.",
        choices=("auto", "device", "host"),
    )
    cache_dtype: str = setting(
        "same",
        "same: the type of the model. fp8: half the bytes, but not equal: values come back within 1/16 of themselves.",
        choices=("same", "fp8"),
    )
    host_cache_gb: float | None = setting(
        None,
        "Upper bound of the pinned host memory for the cache of one replica, in units of 1e9 bytes; null is half of "
        "what is free when the replica starts, shared evenly among the GPUs of the machine.",
        ge=0,
    )
    modulation: str = setting(
        "auto",
        "Where the weights of the modulation layers wait between time grids. host frees 6.6 GB of the device with "
        "FLUX.1-dev. auto: by the memory plan.",
        choices=("auto", "device", "host"),
    )
    offload: str = setting(
        "none",
        "group: the weights wait on the host and come to the device block by block, for a GPU with less memory than "
        "they take.",
        choices=("none", "group"),
    )
    precision: str = setting(
        "same",
        "Products of FLUX's blocks. same: in `dtype`. fp8: weights and inputs rounded to 8 bits, each row with a scale "
        "of its own; half the memory of the blocks, and products in 8 bits on GPUs that have them, with all else in "
        "`dtype`. The results are not equal; `python -m tests.benchmarks.precision` measures by how much.",
        choices=("same", "fp8"),
    )
    step_cache: float | None = setting(
        None,
        "Skip all of FLUX's blocks but the first in evaluations where what that block adds has changed by less than "
        "this share since the last full one; null skips nothing. The results are not equal: with the demo's photo "
        "teacher 0.1 skips 34 % of the evaluations and moves pixels by 1.5 gray levels on average, where the "
        "projection itself moves them by 5.7 (`python -m tests.benchmarks.precision`).",
        gt=0,
    )
    compile: Any = setting(
        "auto",
        "Compile the blocks of the transformer, which takes a GPU half a minute for images alone and as long for "
        "images together. auto: if the teacher is FLUX on a GPU and `generate` has images enough for it; `plan` says "
        "so. Elsewhere auto is false. The results are equal up to rounding.",
        check=checks.switch_or_auto,
        kind="true, false, or auto",
    )
    attention_backend: str | None = setting(
        None,
        "Implementation of attention by the name that diffusers gives it, such as _native_cudnn, flash or _flash_3; "
        "null is PyTorch's choice.",
    )
    vae_tile_above: int | None = setting(
        4194304,
        "Images, or tiles, with more pixels than this pass the autoencoder in tiles of its own; null never does that.",
        ge=1,
    )
    max_sequence_length: int = setting(
        512,
        "Number of tokens of T5, or of Qwen3 for FLUX.2. A shorter length is encoded anew, never sliced. If a table of "
        "embeddings lies beside the weights and no text encoders do, the length of the table is taken.",
        ge=1,
        le=512,
    )
    prompt_embeddings: str | None = setting(
        None, "File or URL that `gmd-ray encode-prompts` wrote; a run without it makes its own if it has to.", path=True
    )
    tile: int = setting(0, "Side of the tiles for images larger than that, in pixels; 0 projects whole images.", ge=0)
    tile_overlap: int = setting(64, "Number of pixels by which tiles overlap; the seam is blended.", ge=0)
    dtype: str = setting(
        "auto",
        "Type of weights and activations; auto is bfloat16 on CUDA and float32 on a CPU. Latents stay float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = device_setting()
    gpus_per_replica: int = setting(
        1,
        "Ranks of a replica: processes of one node, with a GPU each, that share computation and cache. The actors of "
        "the pool reserve as many GPUs. The results are equal up to rounding. Use it only if one GPU is too small or "
        "too slow: more replicas give more images a second.",
        ge=1,
    )
    sharding: str = setting(
        "tensor",
        "How ranks share. tensor: the weights are split too. ulysses: the tokens are split, with less traffic and all "
        "weights on each GPU.",
        choices=("tensor", "ulysses"),
    )
    color_fix: str = setting(
        "none",
        "Gives the colors of the restored image back to the result. wavelet: its low frequencies. adain: the mean and "
        "standard deviation of each channel.",
        choices=("none", "wavelet", "adain"),
    )
    pool: PoolConfig = section(PoolConfig, batch_size=4)
