"""Products in 8 bits with a scale for each row: weights rounded once, activations at each call.

On GPUs that multiply 8-bit floats (compute capability 8.9 and above) the product itself runs in 8 bits. Elsewhere the
same rounded numbers are multiplied in float32, which gives the same results to rounding and is slower than no rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Float8Linear(nn.Module):
    """A frozen Linear whose weight is kept in float8_e4m3fn, and whose inputs are rounded to it before the product.

    Each output channel of the weight and each row of the input has a scale of its own, so that its largest number is
    the largest of the format. A number is rounded to within 1/16 of itself.
    """

    numbers: torch.Tensor
    """(out, in) float8_e4m3fn."""
    scale: torch.Tensor
    """(out, 1) float32."""
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        """
        Args:
            layer: is not changed.
            device: where the weight is rounded, and stays.
        """
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        numbers, scale = rounded(layer.weight.detach().to(device))
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out) in the type of `x`."""
        rows = x.flatten(0, -2)
        numbers, scale = rounded(rows)
        if rows.shape[0] and multiplies_float8(x):
            out = torch._scaled_mm(
                numbers, self.numbers.t(), scale, self.scale.t(), bias=self.bias, out_dtype=x.dtype, use_fast_accum=True
            )
        else:
            wide = None if self.bias is None else self.bias.float()
            out = F.linear(numbers.float() * scale, self.numbers.float() * self.scale, wide).to(x.dtype)
        return out.unflatten(0, x.shape[:-1])


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, k) -> their numbers in float8_e4m3fn and scales (n, 1) float32, whose product they are to rounding."""
    wide = rows.float()
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def multiplies_float8(x: torch.Tensor) -> bool:
    """True if products of rows with scales run in 8 bits on the tensor's device, which return bfloat16 alone."""
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 9)


def quantize(model: nn.Module, blocks: tuple[str, ...], device: torch.device) -> None:
    """Replace every Linear below these children of the model by a `Float8Linear`, one after the other.

    Args:
        blocks: names of the children, such as `transformer_blocks`.
        device: where the weights are rounded, and stay.
    """
    for block in blocks:
        for name, layer in list(model.get_submodule(block).named_modules()):
            if isinstance(layer, nn.Linear):
                model.set_submodule(f"{block}.{name}", Float8Linear(layer, device))
