"""Settings of the teacher (teacher.md 0 to 1.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gmd_ray.config.models import PoolConfig


@dataclass
class InjectionConfig:
    """Which attention keys and values of the inversion replace those of the reconstruction (teacher.md 1.2, 1.4)."""

    tensors: str = "kv"
    """kv (paper) or v (RF-Solver)."""
    blocks: Any = "late_single"
    """all, single, double, late_single (single blocks 20 and up, as RF-Solver), or a list of module names; of a U-Net
    all, down, mid, up, or a list."""
    tokens: str = "all"
    """all or image."""
    steps: int | None = 5
    """The first n (noisiest) reconstruction intervals; None is all of them."""


@dataclass
class TeacherConfig:
    """The frozen text-to-image flow model that pulls a restored image onto the natural-image manifold."""

    path: str | None = None
    """Local directory or hub id in the diffusers layout."""
    method: str = "inversion"
    """inversion (paper), of FLUX or Stable Diffusion, whichever lies in `path`; ddim, Stable Diffusion's by name;
    sdedit: noise drawn to level `strength`, then the reconstruction alone; kontext: FLUX.1 Kontext, which follows the
    instruction in `prompt`; or `package.module:factory`, a Teacher of your own."""
    preset: str | None = None
    """A method by name: gmd, gmd-literal, rf-solver, kv-edit, vital, none, sdedit, kontext or ddim; fills the fields
    that tell methods apart when settings are loaded. Fields given beside it or after it win."""
    solver: str = "euler"
    """euler (paper); midpoint (RF-Solver) and fireflow: second order, at two and one evaluations an interval."""
    steps: int = 25
    """Intervals of each of the two passes."""
    strength: float = 1.0
    """Noise level at which the inversion stops and the reconstruction starts; 1.0 is pure noise (paper)."""
    nudge: float = 1.0
    """Factor on the latents that are inverted, taken off the result again; 1.15 helps smooth images to invert."""
    prompt: str = ""
    """Prompt of the reconstruction; the empty string is the null prompt."""
    inversion_prompt: str = ""
    guidance: float = 2.0
    """Distilled guidance embedding of the reconstruction; ignored by models without one."""
    inversion_guidance: float = 1.0
    true_cfg: float | None = None
    """Weight w of v_null + w (v_prompt - v_null) in the reconstruction; None runs the prompt alone."""
    true_cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels, both ends in, where `true_cfg` acts; elsewhere the prompt runs alone, at half the cost."""
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    cache: str = "kv"
    """What the inversion leaves for injection: kv; input, half the memory where both are injected; lockstep, memory of
    one evaluation for as many more forward passes as are injected. Equal up to rounding."""
    cache_location: str = "auto"
    """Where that waits: device; host, copied out and back beside the computation; or auto, by the memory plan (FLUX's;
    Stable Diffusion has none), which may also turn to lockstep. Equal in what comes out."""
    cache_dtype: str = "same"
    """same as the model's, or fp8: half the bytes, but not equal: values come back within 1/16 of themselves."""
    host_cache_gb: float | None = None
    """At most that much pinned host memory for one replica's cache; None is half of what is free when it starts, shared
    out evenly among the machine's GPUs."""
    modulation: str = "auto"
    """Where the weights of the modulation layers wait between time grids: device, host (frees 6.6 GB on FLUX.1-dev) or
    auto, by the memory plan."""
    offload: str = "none"
    """none, or group: weights wait on the host and come to the device block by block, for cards smaller than they."""
    quantization: str = "none"
    """none, or fp8: the blocks' weights in 8 bits, computed in `dtype`; needs the extra `quantization`. Not equal."""
    compile: bool = False
    """Compile the transformer's blocks; minutes at the first image of a size, and smaller batches are filled up."""
    attention_backend: str | None = None
    """Attention by diffusers' name, as _native_cudnn, flash or _flash_3; None is PyTorch's choice."""
    vae_tile_above: int | None = 4194304
    """Images, or tiles, of more pixels pass the autoencoder in tiles of its own; None is never."""
    max_sequence_length: int = 512
    """T5 tokens; a shorter length is encoded anew, never sliced. Where a table of embeddings lies beside the weights
    and no text encoders do, the table's own length."""
    prompt_embeddings: str | None = None
    """File or URL that `gmd-ray encode-prompts` wrote; a run makes its own where it has to."""
    tile: int = 0
    """Side of the tiles for images larger than it, in pixels; 0 projects whole images."""
    tile_overlap: int = 64
    dtype: str = "auto"
    """Weights and activations: auto (bfloat16 on CUDA, float32 on CPU), float32, bfloat16. Latents stay float32."""
    device: str = "auto"
    gpus_per_replica: int = 1
    """Ranks of a replica: processes of one node, a GPU each, that share compute and cache. The pool's actors reserve as
    many GPUs. Equal up to rounding; only where one GPU is too small or too slow: replicas give more images/s."""
    sharding: str = "tensor"
    """How they share: tensor splits the weights too; ulysses splits the tokens, has less traffic and all weights on
    each GPU."""
    color_fix: str = "none"
    """Colours of the restored image given back to the result: none; wavelet, its low frequencies; adain, mean and
    standard deviation of each channel."""
    pool: PoolConfig = field(default_factory=lambda: PoolConfig(batch_size=4))
