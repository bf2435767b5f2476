"""The outputs of FLUX's modulation layers (shifts, scales, gates of its adaptive norms), computed once per time grid.

They depend on time, guidance and the pooled prompt alone, so one row serves every image of every batch. The layers that
make them are 28 % of FLUX.1-dev's weights and need not stay on the accelerator. See docs/decisions.md, "Memory and
cost".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from gmd_ray.teachers.flux.families.model import InjectingModel

if TYPE_CHECKING:
    from gmd_ray.teachers.text_encoders import Prompt

KEPT_ROWS = 256
"""Most rows that are kept for time grids seen before: 2.1 MB each on FLUX.1-dev in bfloat16."""


class Conditioning(NamedTuple):
    """The inputs of the modulation of one forward pass. Prompts are compared by identity."""

    t: float
    guidance: float | None
    prompt: Prompt


class Columns(nn.Module):
    """Replaces the Linear of an adaptive norm: selects that norm's columns from the row of its block."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.first, self.width = first, width

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return row[:, self.first : self.first + self.width]


class ModulationTables:
    """Detaches the modulation layers from a model and computes their outputs; the model then runs with `rows` alone."""

    def __init__(self, model: InjectingModel, device: torch.device, home: torch.device | None = None) -> None:
        """
        Args:
            device: where rows are computed and used.
            home: where the layers' weights stay; by default on `device`. From elsewhere, each new time grid copies them
                to `device` one layer at a time: 6.6 GB over the bus for FLUX.1-dev.
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
        """Detach the modulation layers from the model; the constructor has done it once."""
        self._embedder.to(self._home)
        self._model.time_text_embed = None
        for name, norms in _norms(self._model).items():
            first = 0
            # A block's row is the outputs of its norms side by side; each norm reads its own columns. The SiLU ahead of
            # the layers is applied once, in `prepare`.
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
        """Compute the rows that are missing, all in one batch, so that each layer's weights are read once."""
        keys = list(dict.fromkeys(wanted))
        missing = [key for key in keys if key not in self._rows]
        if not missing:
            return
        if len(self._rows) + len(missing) > KEPT_ROWS:
            # Clearing also drops wanted rows that were there. They are computed again in this batch: one by one, each
            # would cost as much as the whole batch.
            self._rows.clear()
            missing = keys
        # (missing, width): embeddings of time, guidance and pooled prompt, summed, then SiLU as in the norms.
        embedded = nn.functional.silu(self._embed(missing))
        # Block name -> (missing, columns of all norms of the block).
        tables = {
            name: torch.cat([self._run(layer, embedded) for layer in layers], dim=1)
            for name, layers in self._layers.items()
        }
        # Copies, since a compiled block would tell rows apart by their place in one table.
        for i, key in enumerate(missing):
            self._rows[key] = {name: table[i : i + 1].clone() for name, table in tables.items()}

    def rows(self, key: Conditioning) -> dict[str, torch.Tensor]:
        """The rows of one forward pass, computed if they are missing.

        Returns:
            block name -> (1, 12 width) for a double block, (1, 3 width) for a single one; `norm_out` -> (1, 2 width).
        """
        self.prepare([key])
        return self._rows[key]

    def nbytes(self) -> int:
        """Bytes of the rows that are kept now."""
        return sum(row.nbytes for rows in self._rows.values() for row in rows.values())

    def _embed(self, keys: list[Conditioning]) -> torch.Tensor:
        """(keys, width): the model's embedding of time, guidance and pooled prompt."""

        def column(values: list[float]) -> torch.Tensor:
            # Cast to the model's dtype in [0, 1] before the factor 1000, as FluxTransformer2DModel.forward does.
            return torch.tensor(values, dtype=self._dtype, device=self._device) * 1000

        pooled = torch.stack([key.prompt.pooled.to(self._device, self._dtype) for key in keys])
        times = column([key.t for key in keys])
        scales = [key.guidance for key in keys if key.guidance is not None]
        if not scales:
            return self._run(self._embedder, times, pooled)
        return self._run(self._embedder, times, column(scales), pooled)

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """The module's output on `device`, with its weights copied there for the call if they stay elsewhere."""
        if self._home == self._device:
            return module(*inputs)
        weights = {name: p.to(self._device, non_blocking=True) for name, p in module.named_parameters()}
        return functional_call(module, weights, inputs)


def _norms(model: InjectingModel) -> dict[str, list[Any]]:
    """The adaptive norms of each block, in the order of their columns."""
    double = {f"transformer_blocks.{i}": [b.norm1, b.norm1_context] for i, b in enumerate(model.transformer_blocks)}
    single = {f"single_transformer_blocks.{i}": [b.norm] for i, b in enumerate(model.single_transformer_blocks)}
    return {**double, **single, "norm_out": [model.norm_out]}
