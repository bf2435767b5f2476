"""The rows of FLUX's adaptive layer norms, computed once for each time grid (teacher.md 4.3).

They depend on time, guidance and the pooled prompt alone, so one row serves every image of every batch; the layers
that make them are 28 % of FLUX.1-dev's weights and need not stay on the accelerator.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from gmd_ray.teachers.flux.attention import InjectingFlux

if TYPE_CHECKING:
    from gmd_ray.teachers.text_encoders import Prompt

KEPT_ROWS = 256
"""Rows that stay for grids seen before: 2.1 MB each on FLUX.1-dev in bfloat16."""


class Conditioning(NamedTuple):
    """What a forward pass depends on beside latents and text tokens; prompts compare by identity."""

    t: float
    guidance: float | None
    prompt: Prompt


class Columns(nn.Module):
    """Stands where a layer norm had its Linear: that layer's columns of a block's row."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.first, self.width = first, width

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return row[:, self.first : self.first + self.width]


class ModulationTables:
    """Takes the modulation layers out of a model and answers for them; from then on it runs with `rows` alone."""

    def __init__(self, model: InjectingFlux, device: torch.device, home: torch.device | None = None) -> None:
        """
        Args:
            device: where rows are computed and used.
            home: where the layers' weights stay; default: there. Elsewhere they pass through `device` one layer at a
                time, 6.6 GB over the bus for each new time grid of FLUX.1-dev.
        """
        self._model, self._device, self._home = model, device, home or device
        self._dtype = model.dtype
        self._embedder: nn.Module = model.time_text_embed
        self._layers: dict[str, list[nn.Linear]] = {
            name: [norm.linear for norm in norms] for name, norms in _norms(model).items()
        }
        self._rows: dict[Conditioning, dict[str, torch.Tensor]] = {}
        self.take_out()

    def take_out(self) -> None:
        """Leave the model without the layers; done once already."""
        self._embedder.to(self._home)
        self._model.time_text_embed = None
        for name, norms in _norms(self._model).items():
            first = 0
            for norm, linear in zip(norms, self._layers[name], strict=True):
                width = linear.to(self._home).out_features
                norm.linear, norm.silu = Columns(first, width), nn.Identity()
                first += width

    def restore(self) -> None:
        """Put the layers back, for a plain forward pass or a state dict."""
        self._model.time_text_embed = self._embedder.to(self._device)
        for name, norms in _norms(self._model).items():
            for norm, linear in zip(norms, self._layers[name], strict=True):
                norm.linear, norm.silu = linear.to(self._device), nn.SiLU()

    @torch.no_grad()
    def prepare(self, wanted: Iterable[Conditioning]) -> None:
        """Compute what is missing, all at once: each layer's weights are read once for it."""
        keys = list(dict.fromkeys(wanted))
        missing = [key for key in keys if key not in self._rows]
        if not missing:
            return
        if len(self._rows) + len(missing) > KEPT_ROWS:
            # Those that are wanted and were there go too, and would come back one by one, each at the price of all.
            self._rows.clear()
            missing = keys
        embedded = nn.functional.silu(self._embed(missing))
        tables = {
            name: torch.cat([self._run(layer, embedded) for layer in layers], dim=1)
            for name, layers in self._layers.items()
        }
        for i, key in enumerate(missing):
            self._rows[key] = {name: table[i : i + 1] for name, table in tables.items()}

    def rows(self, key: Conditioning) -> dict[str, torch.Tensor]:
        """Block name -> (1, 12 x width) of a double block, 3 x width of a single one; `norm_out` -> 2 x width."""
        self.prepare([key])
        return self._rows[key]

    def nbytes(self) -> int:
        """Of the rows that are held now."""
        return sum(row.nbytes for rows in self._rows.values() for row in rows.values())

    def _embed(self, keys: list[Conditioning]) -> torch.Tensor:
        def column(values: list[float]) -> torch.Tensor:
            # In the model's dtype before it is scaled, as the forward pass has it (teacher.md 2.1).
            return torch.tensor(values, dtype=self._dtype, device=self._device) * 1000

        pooled = torch.stack([key.prompt.pooled.to(self._device, self._dtype) for key in keys])
        times = column([key.t for key in keys])
        scales = [key.guidance for key in keys if key.guidance is not None]
        if not scales:
            return self._run(self._embedder, times, pooled)
        return self._run(self._embedder, times, column(scales), pooled)

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self._home == self._device:
            return module(*inputs)
        weights = {name: p.to(self._device, non_blocking=True) for name, p in module.named_parameters()}
        return functional_call(module, weights, inputs)


def _norms(model: InjectingFlux) -> dict[str, list[Any]]:
    """The adaptive norms of each block, in the order of their columns."""
    double = {f"transformer_blocks.{i}": [b.norm1, b.norm1_context] for i, b in enumerate(model.transformer_blocks)}
    single = {f"single_transformer_blocks.{i}": [b.norm] for i, b in enumerate(model.single_transformer_blocks)}
    return {**double, **single, "norm_out": [model.norm_out]}
