"""Forwards repeated by a GPU without the host: a CUDA graph of the whole transformer for one shape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from gmd_ray.config import TeacherConfig
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray")

Run = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]
"""The work: inputs and the tensors of a bank, whose shapes and types never change -> output."""


class ForwardRecorder(Protocol):
    """Records work once, and repeats it on the same memory."""

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Run the work, and return a function that repeats it and gives its output, the same tensor each time."""
        ...

    def forget(self) -> None:
        """Learn that nobody holds a recording any more."""
        ...


class CudaRecorder:
    """Records work as a CUDA graph, which the GPU then repeats at one launch.

    Recordings share the memory of their activations, since one runs at a time and each makes its own anew. Their
    outputs stay where they are as long as the recordings do, but the next repetition of any may overwrite them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def forget(self) -> None:
        self._pool = None

    def record(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        # One stream for all recordings: the allocator gives memory that one left in their pool to the others only if
        # they were made on the same stream.
        self._stream = stream = self._stream or torch.cuda.Stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()  # compiles, and lets libraries choose their kernels, which a recording may not
        current.wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Other threads of the process pin memory for the next images meanwhile, which is no part of the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                out = run()
        finally:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own as the current one

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class Recording(NamedTuple):
    """One kind of forward."""

    inputs: list[torch.Tensor]
    """The memory that it reads, beside the bank's."""
    replay: Callable[[], torch.Tensor]


class ForwardGraphs:
    """Keeps a recording for each kind of forward of the last shape: without a bank, writing one, and reading one.

    Recorded work reads and writes the same memory each time. So the tensors of a bank are copied from or to one bank
    that all recordings share, which takes a hundredth of a forward. Its memory, and that of all activations, is taken
    beside everything else.
    """

    def __init__(self, recorder: ForwardRecorder) -> None:
        self._recorder: ForwardRecorder | None = recorder
        self._shape: Hashable = None
        self._kept: dict[Hashable, Recording] = {}
        self._bank: list[torch.Tensor] = []

    def __call__(
        self,
        kind: Hashable,
        run: Run,
        inputs: Sequence[torch.Tensor],
        bank: Sequence[torch.Tensor] = (),
        *,
        writes: bool = False,
    ) -> torch.Tensor:
        """The output of `run`, in memory of its own.

        Args:
            kind: what the recording depends on beside the shapes and types of its tensors. `run` must do the same for
                one kind.
            inputs: all that changes between calls of one kind, the latents first: another shape of theirs, or of the
                bank, lets go of all recordings.
            bank: the tensors of the bank that this forward writes or reads.
            writes: the forward fills the bank, and does not read it.
        """
        if self._recorder is None:
            return run(inputs, bank)
        self.make_room(inputs[0].shape)
        if bank and self._bank and _form(bank) != _form(self._bank):
            self._forget(self._shape)
        if bank and not self._bank:
            self._bank = [torch.empty_like(x) for x in bank]
        if not writes:
            _copy(self._bank, bank)
        key = (kind, writes, _form(inputs), _form(bank))
        if key not in self._kept:
            fixed = [x.clone() for x in inputs]
            to = self._bank if bank else []
            try:
                self._kept[key] = Recording(fixed, self._recorder.record(lambda: run(fixed, to)))
            except RuntimeError as error:
                log.warning("a forward cannot be recorded as a CUDA graph (%s); the host issues it", one_line(error))
                self.make_room(None)
                self._recorder = None
                return run(inputs, bank)
        recording = self._kept[key]
        _copy(recording.inputs, inputs)
        out = recording.replay().clone()
        if writes:
            _copy(bank, self._bank)
        return out

    def make_room(self, shape: Hashable) -> None:
        """Free all recordings, unless they are of latents of that shape; None frees them in any case."""
        if shape != self._shape:
            self._forget(shape)

    def _forget(self, shape: Hashable) -> None:
        """Free everything before memory is taken anew."""
        self._kept.clear()
        self._bank, self._shape = [], shape
        if self._recorder is not None:
            self._recorder.forget()


def _form(tensors: Sequence[torch.Tensor]) -> tuple[Hashable, ...]:
    """The shapes and types of tensors."""
    return tuple((x.shape, x.dtype) for x in tensors)


def _copy(to: Sequence[torch.Tensor], x: Sequence[torch.Tensor]) -> None:
    """Copy tensors, those of one type at one launch."""
    for dtype in {each.dtype for each in x}:
        pairs = [(a, b) for a, b in zip(to, x, strict=True) if b.dtype == dtype]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def records_forwards(cfg: TeacherConfig, device: torch.device) -> bool:
    """True where forwards are recorded: compiled blocks on a GPU that has the whole model, and the same ones each time.

    With a step cache the host decides in each forward which blocks run.
    """
    whole = cfg.offload == "none" and cfg.gpus_per_replica == 1
    return device.type == "cuda" and cfg.compile is True and whole and cfg.step_cache is None
