"""The latent diffusion student: an MMDiT that is sampled in a few steps and trained on its velocity.

It is a directory in the diffusers layout:

    model_index.json   the classes of the parts, `scale` and `sampling_steps`
    transformer/       SD3Transformer2DModel; in_channels is twice the number of latent channels
    vae/               AutoencoderKL, frozen

The LQ image is enlarged bicubically to the output's size, encoded by the same autoencoder, and concatenated to the
noisy latent. See docs/method.md, "Students".
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gmd_ray.config import StudentConfig
from gmd_ray.devices import choose_device
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.hashing import content_digest
from gmd_ray.images.noise import image_noise
from gmd_ray.images.padding import pad_to_multiple
from gmd_ray.images.tiling import grid_multiple, tiled_in_batches
from gmd_ray.students.common import evaluating, fingerprint, tiles_at_once
from gmd_ray.students.latent.network import LatentCodec, LatentNetwork, even_sigmas, sample
from gmd_ray.text import one_line

INDEX = "model_index.json"
CLASS = "LatentRestorer"
"""The `_class_name` in the index."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class LatentStudent:
    """A conditional latent flow model; see `gmd_ray.students.protocol.Student`."""

    scale: int
    """Output side divided by input side."""
    module: nn.Module
    """The `LatentNetwork`. The frozen autoencoder is not a part of it."""
    fingerprint: str
    """Digest of all loaded weights and the settings that affect pixels."""

    def __init__(
        self, cfg: StudentConfig, network: LatentNetwork, codec: LatentCodec, index: dict[str, Any], stored: torch.dtype
    ) -> None:
        self._device = choose_device(cfg.device, "student.device")
        self.module, self.scale = network.to(self._device), int(index["scale"])
        self._network, self._codec, self._stored = network, codec, stored
        self._source = Path(str(cfg.path))
        self._tile, self._dtype, self._batch = cfg.tile, cfg.dtype, tiles_at_once(cfg, self._device)
        # Attention spans a whole tile, so there is no receptive radius to measure.
        self._overlap = cfg.tile // 4 if cfg.tile_overlap is None else cfg.tile_overlap
        self._sigmas = even_sigmas(cfg.sampling_steps or int(index["sampling_steps"]))
        patch: int = network.transformer.config.patch_size
        self._multiple = codec.factor * patch
        self._grid = self._tile_grid()
        self._largest: int = network.transformer.config.pos_embed_max_size * self._multiple
        if cfg.gradient_checkpointing:
            network.transformer.enable_gradient_checkpointing()
        settings = {"dtype": cfg.dtype, "tile": cfg.tile, "sigmas": self._sigmas, "scale": self.scale}
        if cfg.tile:
            settings |= {"tile_overlap": self._overlap, "tile_grid": self._grid, "tile_noise": "of the image"}
        weights = {f"vae.{key}": value for key, value in codec.vae.state_dict().items()}
        self.fingerprint = fingerprint(weights | network.state_dict(), settings)

    def restore(self, lq: Tensor, ids: Sequence[str] | None = None) -> Tensor:
        """Restore a batch of images of any size from 1x1, in tiles if `student.tile` is set.

        The noise is seeded by each image's id, or by its content without ids. It is drawn for the whole image, and each
        tile uses its part of it, so overlapping tiles start from the same noise.

        Args:
            lq: (B, 3, H, W) in [0, 1], on any device.
            ids: one id for each image.

        Returns:
            (B, 3, H * scale, W * scale), float32 in [0, 1], on the device of `lq`.

        Raises:
            ModelError: the image, or a tile of it, is larger than the network's position embeddings allow.
        """
        assert lq.shape[1:-2] == (3,), f"expected (B, 3, H, W), got {tuple(lq.shape)}"
        keys = [_content_key(image) for image in lq] if ids is None else list(ids)
        assert len(keys) == len(lq), (len(keys), len(lq))
        device = next(self.module.parameters()).device
        self._codec.to(device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._dtype == "bfloat16")

        # `field` is the noise of the padded output, (B, C, H' / factor, W' / factor).
        shape = [math.ceil(side * self.scale / self._multiple) * self._multiple for side in lq.shape[-2:]]
        channels, factor = self._network.channels, self._codec.factor
        field = torch.stack([image_noise(key, (channels, *(side // factor for side in shape))) for key in keys])

        def restore(x: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
            height, width = x.shape[-2] * self.scale, x.shape[-1] * self.scale
            if max(height, width) > self._largest:
                raise ModelError(
                    f"{width}x{height} pixels: the student has positions for {self._largest} pixels per side; set "
                    f"student.tile to at most {self._largest // self.scale * 7 // 8}"  # the last tile may be 1/8 longer
                )
            # x: (n * B, 3, h, w) with one place for each of the n tiles; see `tiled_in_batches`.
            condition = self._codec.encode(pad_to_multiple(self._enlarged(x), self._multiple))
            corners = [(y0 * self.scale // factor, x0 * self.scale // factor) for y0, x0 in places]
            rows, columns = condition.shape[-2:]
            noise = torch.cat([field[..., top : top + rows, left : left + columns] for top, left in corners]).to(device)
            clean = sample(self._network, condition, noise, self._sigmas)
            return self._codec.decode(clean)[..., :height, :width]

        with torch.no_grad(), evaluating(self.module), autocast:
            image = lq.to(device, torch.float32)
            restored = tiled_in_batches(restore, image, self._tile, self._overlap, self.scale, self._grid, self._batch)
        return restored.float().clamp(0, 1).to(lq.device)

    def training_loss(
        self,
        lq: Tensor,
        hq: Tensor,
        forward: nn.Module | None = None,
        *,
        reduce: bool = True,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean squared error of the velocity; see `Student.training_loss`.

        The noise level is uniform in [0, 1). Noise and level of a crop depend only on its key, on any device and in any
        batch; without `keys`, they come from torch's global generator.

        Returns:
            the mean loss, and `loss` to log. Without `reduce`, the loss of each crop, (B,), and {}.
        """
        self._codec.to(hq.device)
        clean = self._codec.encode(pad_to_multiple(hq, self._multiple))
        condition = self._codec.encode(pad_to_multiple(self._enlarged(lq), self._multiple))
        if keys is None:
            noise, sigma = torch.randn_like(clean), torch.rand(len(clean), device=clean.device)
        else:
            draws = [torch.Generator().manual_seed(key) for key in keys.tolist()]
            noise = torch.stack([torch.randn(clean.shape[1:], generator=draw) for draw in draws]).to(clean.device)
            sigma = torch.cat([torch.rand(1, generator=draw) for draw in draws]).to(clean.device)
        level = sigma.view(-1, 1, 1, 1)
        velocity = (self.module if forward is None else forward)((1 - level) * clean + level * noise, condition, sigma)
        losses = (velocity.float() - (noise - clean)).square().flatten(1).mean(1)
        if not reduce:
            return losses, {}
        loss = losses.mean()
        return loss, {"loss": loss.item()}

    def save(self, path: str | Path) -> None:
        """Write the directory: the present transformer in its own precision, and all other files unchanged.

        Raises:
            ModelError: the weights are not finite, or the path is a file.
        """
        path = Path(path)
        if path.is_file():
            raise ModelError(f"cannot save {path}: this student is a directory, and that is a file")
        if not all(value.isfinite().all() for value in self._network.state_dict().values()):
            raise ModelError(f"cannot save {path}: weights that are not finite; the training diverged")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
        try:
            shutil.copytree(self._source, draft, ignore=shutil.ignore_patterns("transformer", ".*"))
            _save_transformer(self._network, draft / "transformer", self._stored)
            shutil.copy(self._source / "transformer" / "config.json", draft / "transformer")
            if path.is_dir():
                path.replace(old)
            try:
                draft.replace(path)
            except OSError:
                if old.is_dir():  # put the previous student back
                    old.replace(path)
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def _tile_grid(self) -> int:
        """Return the multiple at which tiles begin, in LQ pixels.

        It aligns tiles with patches of latents, so that the noise of a tile is a slice of the image's.
        """
        patch = self._multiple // math.gcd(self._multiple, self.scale)  # in LQ pixels
        if self._tile and self._tile - self._overlap < patch:
            raise ConfigError(
                f"student.tile={self._tile} with tile_overlap={self._overlap}: this student's tiles must be at least "
                f"{patch} pixels apart; set tile_overlap to at most {max(0, self._tile - patch)}"
            )
        return max(1, grid_multiple(self._tile, self._overlap) // patch) * patch

    def _enlarged(self, lq: Tensor) -> Tensor:
        return lq if self.scale == 1 else F.interpolate(lq, scale_factor=self.scale, mode="bicubic").clamp(0, 1)


def load_latent(cfg: StudentConfig) -> LatentStudent:
    """Load a latent diffusion directory.

    Raises:
        ModelError: the directory is not such a student, or its parts do not fit together.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    path = Path(str(cfg.path))
    index = read_index(path)
    transformer = _load(SD3Transformer2DModel, path / "transformer")
    vae = _load(AutoencoderKL, path / "vae")
    channels = vae.config.latent_channels
    if (transformer.config.in_channels, transformer.config.out_channels) != (2 * channels, channels):
        raise ModelError(
            f"student {path}: a transformer of {transformer.config.in_channels} channels in and "
            f"{transformer.config.out_channels} out does not fit an autoencoder of {channels}: it needs twice as many "
            f"in, and as many out"
        )
    return LatentStudent(cfg, LatentNetwork(transformer), LatentCodec(vae), index, _stored_dtype(path / "transformer"))


def write_index(path: Path, scale: int, sampling_steps: int) -> None:
    """Write the index of a directory whose parts exist."""
    index = {
        "_class_name": CLASS,
        "scale": scale,
        "sampling_steps": sampling_steps,
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_index(path: Path) -> dict[str, Any]:
    """Read the index of a latent diffusion directory, with `scale` and `sampling_steps`.

    Raises:
        ModelError: the index is missing, damaged, or of another kind of model.
    """
    file = path / INDEX
    if not file.is_file():
        raise ModelError(
            f"student {path}: a directory without {INDEX}; name the weight file in it, or make a student with "
            f"`gmd-ray new-student`"
        )
    try:
        index = json.loads(file.read_text())
        kind, numbers = index["_class_name"], (int(index["scale"]), int(index["sampling_steps"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"student {file}: damaged, or of another kind of model ({error})") from error
    if kind != CLASS or min(numbers) < 1:
        raise ModelError(
            f"student {file}: describes a {kind}, not a {CLASS} with scale and sampling_steps of 1 or more"
        )
    return dict(index)


def _load(kind: Any, path: Path) -> Any:
    try:
        return kind.from_pretrained(path, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = one_line(error, 200)
        raise ModelError(f"student {path}: cannot be loaded as {kind.__name__} ({reason})") from error


def _save_transformer(network: LatentNetwork, path: Path, dtype: torch.dtype) -> None:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        copy = SD3Transformer2DModel.from_config(network.transformer.config)
    state = {key: value.detach().to("cpu", dtype) for key, value in network.transformer.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    copy.save_pretrained(path)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the type of the first weight in the folder's first file."""
    with safe_open(sorted(folder.glob("*.safetensors"))[0], framework="pt") as file:
        first = next(iter(file.keys()))
        return _DTYPES.get(file.get_slice(first).get_dtype(), torch.float32)


def _content_key(image: Tensor) -> str:
    return content_digest(image.detach().float().cpu().contiguous().numpy().tobytes())
