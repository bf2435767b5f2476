"""Forwards repeated by a GPU without the host: a CUDA graph of the whole transformer for one shape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray")

Run = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""The work: inputs, whose shapes and types never change -> output."""


class ForwardRecorder(Protocol):
    """Records work once, and repeats it on the same memory."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Run the work, and return a function that repeats it and gives its output, the same tensor each time."""
        ...


class ImmediateRecorder:
    """Repeats work by calling it: on a CPU there is nothing to record."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        out = run()
        return lambda: out.copy_(run())


class CudaRecorder:
    """Records work as a CUDA graph, which the GPU then repeats at one launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            run()  # compiles, and lets libraries choose their kernels, which a recording may not
        torch.cuda.current_stream(self._device).wait_stream(stream)
        # Other threads of the process pin memory for the next images meanwhile, which is no part of the recording.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class ForwardGraphs:
    """Keeps the recording of the last shape: its memory, that of all activations, is taken beside everything else."""

    def __init__(self, recorder: ForwardRecorder) -> None:
        self._recorder: ForwardRecorder | None = recorder
        self._key: Hashable = None
        self._fixed: list[torch.Tensor] = []
        self._replay: Callable[[], torch.Tensor] | None = None

    def __call__(self, key: Hashable, run: Run, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output of `run`, in memory of its own.

        Args:
            key: what the recording depends on beside the inputs' shapes and types. `run` must do the same for one key.
            inputs: all that changes between calls of one key.
        """
        if self._recorder is None:
            return run(inputs)
        key = (key, *((x.shape, x.dtype) for x in inputs))
        if key != self._key or self._replay is None:
            self._key, self._replay = None, None  # frees the last one before memory is taken anew
            fixed = self._fixed = [x.clone() for x in inputs]
            try:
                self._replay, self._key = self._recorder.record(lambda: run(fixed)), key
            except RuntimeError as error:
                log.warning("a forward cannot be recorded as a CUDA graph (%s); the host issues it", one_line(error))
                self._recorder, self._fixed = None, []
                return run(inputs)
        for dtype in {x.dtype for x in inputs}:  # one launch for all tensors of a type
            pairs = [(to, x) for to, x in zip(self._fixed, inputs, strict=True) if x.dtype == dtype]
            torch._foreach_copy_([to for to, _ in pairs], [x for _, x in pairs])
        return self._replay().clone()


def records_forwards(cfg: TeacherConfig, device: torch.device) -> bool:
    """True where forwards are recorded: compiled blocks on a GPU that has the whole model, and the same ones each time.

    With a step cache the host decides in each forward which blocks run.
    """
    whole = cfg.offload == "none" and cfg.gpus_per_replica == 1
    return device.type == "cuda" and cfg.compile is True and whole and cfg.step_cache is None
