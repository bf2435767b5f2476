"""Settings of the student and of the scorer, and of the actor pools in which every model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmd_ray.config.sections import checks
from gmd_ray.config.sections.setting import section, setting


def device_setting() -> Any:
    """The setting that each model has for its device."""
    text = "Device that the model runs on; auto is CUDA if there is a GPU, else the CPU."
    return setting("auto", text, check=checks.device, kind="auto, cpu, cuda or cuda:N")


@dataclass
class PoolConfig:
    """An autoscaling pool of Ray Data actors, each of which holds the model."""

    min: int = setting(1, "Number of actors that stay up.", ge=1)
    max: int = setting(1, "Number of actors up to which a backlog makes the pool grow.", ge=1)
    initial: int | None = setting(
        None,
        "Number of actors to start with, if growing from `min` would waste time; null is `min`.",
        ge=1,
    )
    num_cpus: float = setting(1.0, "CPUs that each actor reserves; also its number of torch threads, at least 1.", ge=0)
    num_gpus: float = setting(0.0, "GPUs that each actor reserves; with a fraction, actors share a GPU.", ge=0)
    resources: dict[str, float] = setting({}, "Custom Ray resources that each actor reserves, by name.")
    labels: dict[str, str] = setting(
        {}, "Labels of the nodes on which the actors run, such as `pool: teacher` for a node group."
    )
    batch_size: int = setting(
        8,
        "Number of images handed to an actor at once. In the student's pool it is also the number of tiles, and in "
        "`gmd-ray restore` of photos of one size, that go through the network together.",
        ge=1,
    )


@dataclass
class StudentConfig:
    """The restorer to adapt."""

    path: str | None = setting(
        None,
        "Checkpoint file in any layout that spandrel loads, or a latent diffusion directory; or its URL.",
        path=True,
    )
    factory: str | None = setting(
        None,
        "A student of your own: `package.module:function`, which takes this section and loads `path` itself.",
        check=checks.import_path,
    )
    tile: int = setting(0, "Side of the tiles for large images, in LQ pixels; 0 restores whole images.", ge=0)
    tile_overlap: int | None = setting(
        None,
        "Number of LQ pixels by which tiles overlap. The seam is blended; a quarter of the overlap at each cut is "
        "context alone. null measures it: four times as far as the network looks; for latent diffusion, a quarter of "
        "the tile.",
        ge=0,
    )
    sampling_steps: int | None = setting(
        None,
        "Number of Euler steps of a latent diffusion student; null takes what its directory says. A checkpoint file "
        "refuses it.",
        ge=1,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Keep fewer activations in training and compute them again, which trades time for memory; for latent diffusion "
        "alone.",
    )
    dtype: str = setting(
        "float32", "Precision of inference: float32, or bfloat16 by autocast.", choices=("float32", "bfloat16")
    )
    device: str = device_setting()
    pool: PoolConfig = section(PoolConfig)


@dataclass
class ScorerConfig:
    """The no-reference metric that decides which pseudo-targets are accepted, and an optional second opinion."""

    metric: str = setting("nima", "Name of a no-reference metric of pyiqa (paper: nima).")
    path: str | None = setting(
        None,
        "Directory or URL of a NIMA-form scorer (config.json, model.safetensors), used instead of `metric`.",
        path=True,
    )
    weights: str | None = setting(
        None,
        "Weight file of `metric`, or a directory or URL that `gmd-ray fetch --to` filled; null takes torch's hub "
        "directory.",
        path=True,
    )
    threshold: float = setting(
        4.2,
        "tau (paper): a pair is accepted at `score >= threshold`, or at `score <= threshold` for a metric where lower "
        "is better.",
        gt=float("-inf"),
    )
    tiles: int = setting(
        0,
        "0 scores the whole image (paper; NIMA sees a centre square of it). n scores squares and takes the mean: n of "
        "them along the shorter side, and as many as cover the longer one.",
        ge=0,
    )
    fidelity: str = setting(
        "none",
        "Second opinion, measured between the restored image and the pseudo-target, since `metric` cannot see a "
        "hallucination. Its value is stored with every row.",
        choices=("none", "psnr", "ssim", "lpips", "dists"),
    )
    fidelity_bound: float | None = setting(
        None,
        "A pair is accepted only if its fidelity is at the bound or on the better side of it (psnr, ssim: above; "
        "lpips, dists: below). null stores the value and accepts any.",
        gt=float("-inf"),
    )
    fidelity_weights: str | None = setting(
        None,
        "Weight file of `fidelity`, or a directory as for `weights`; null takes the directory of `weights`, if that is "
        "one.",
        path=True,
    )
    device: str = device_setting()
    pool: PoolConfig = section(PoolConfig)
