"""An adapted student computes what the unadapted one computes; `tests/benchmarks/latency.py` measures the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.latency import trained_a_step
from tests.students.networks import save_network, student_of

Operation = tuple[str, list[tuple[torch.Size, torch.dtype]]]


class Recorder(TorchDispatchMode):
    """Notes each operation with the shapes and types of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        self.operations.append((str(func), [(x.shape, x.dtype) for x in tensors]))
        return result


def restoring(path: Path) -> tuple[dict[str, Any], list[Operation], int]:
    """Shapes of the weights, operations and floating-point operations of restoring one image."""
    student = student_of(path)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    student.restore(image)  # some networks fold their training branches at the first call
    with Recorder() as recorder:
        student.restore(image)
    with FlopCounterMode(display=False) as counter:
        student.restore(image)
    weights = {key: (value.shape, value.dtype) for key, value in student.module.state_dict().items()}
    return weights, recorder.operations, counter.get_total_flops()


@pytest.mark.parametrize("name", ["nafnet", "swinir_x2", "span", "dncnn_gray_bn"])
def test_adaptation_adds_no_operation(tmp_path, name):
    source, adapted = tmp_path / "source.pth", tmp_path / "adapted.pth"
    before = save_network(source, name)
    trained_a_step(source, adapted, "cpu")
    after = torch.load(adapted, weights_only=True)
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    (weights, operations, flops), others = restoring(source), restoring(adapted)
    assert others == (weights, operations, flops)
    assert any("convolution" in operation for operation, _ in operations)
    assert flops > 0
