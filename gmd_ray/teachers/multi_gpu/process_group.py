"""Processes that run one model together, driven by a process outside their group.

The driver is not part of the process group. So it never waits in a collective, which would hang forever if a peer died,
and holds no device that an error could break. The ranks end when their driver ends, in whatever way. See
docs/decisions.md, "Several GPUs".
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from gmd_ray.errors import GmdError, ReplicaLostError
from gmd_ray.text import one_line

TIMEOUT_S = 600.0
"""Longest wait in seconds: of a rank in one collective, and of the driver from the first answer to the last."""

PATIENCE_S = 5.0
"""Seconds that the driver waits for the other ranks after one has failed. Ranks with the same error answer at once."""

CLOSING_S = 5.0
"""Seconds that a rank has to end by itself before it is killed."""

OK, FAILED, BROKEN = "ok", "failed", "broken"
Answer = tuple[str, Any]
"""(OK, result), where ranks other than 0 answer None; or (FAILED or BROKEN, error), where the error is a GmdError or a
text. BROKEN says that the process can do nothing more, as after a CUDA error."""


class RankGroup:
    """k processes in one process group, each with its own model; a call runs in all of them.

    After any error all ranks are ended. One rank may have failed where another went on, and a collective of the failed
    call would be mixed up with one of the next call.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        *,
        cuda: bool = False,
        threads: int = 1,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Start the ranks, and wait until each has its model.

        Args:
            make: makes the model; runs in each rank once the process group is there, and must pickle.
            count: number of ranks.
            cuda: True for NCCL, with the r-th visible device for rank r; False for Gloo on the CPU.
            threads: torch threads of each rank.
            timeout_s: see TIMEOUT_S.

        Raises:
            GmdError: raised by `make`.
            ReplicaLostError: a rank died, or did not answer in time.
            RuntimeError: any other error of a rank; the message has its text.
        """
        self._timeout_s = timeout_s
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._senders: list[threading.Thread] = []
        self.meeting = tempfile.mkdtemp(prefix="gmd-ranks-")
        """Temporary folder with the file through which the ranks find each other."""
        self._end = weakref.finalize(self, _end_ranks, self._pipes, self._processes, self.meeting)
        context = multiprocessing.get_context("spawn")
        for rank in range(count):
            ours, theirs = context.Pipe()
            group = {"rank": rank, "world_size": count, "timeout": timedelta(seconds=timeout_s)}
            args = (make, theirs, self.meeting, group, cuda, threads)
            process = context.Process(target=_run_rank, args=args, name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._gather()

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the ranks, in order; empty once closed."""
        return [] if self.closed else [process.pid for process in self._processes]

    @property
    def closed(self) -> bool:
        """True once the ranks have ended, after `close` or an error."""
        return not self._end.alive

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run `work(model, *args)` in every rank. Function, arguments and result must pickle.

        Returns:
            the result of rank 0.

        Raises:
            GmdError, ReplicaLostError, RuntimeError: as the constructor, for `work`.
        """
        assert not self.closed
        call = pickle.dumps((work, args), pickle.HIGHEST_PROTOCOL)
        # In threads: sending to a rank that does not read would block the driver, which has to listen to the others.
        self._senders = [threading.Thread(target=_send, args=(pipe, call), daemon=True) for pipe in self._pipes]
        for sender in self._senders:
            sender.start()
        return self._gather()

    def close(self) -> None:
        """End the ranks. This also happens when the object is garbage collected, and at the end of the interpreter."""
        self._end()

    def _abandon(self) -> None:
        """Kill the ranks, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for sender in self._senders:
            sender.join(CLOSING_S)  # it ends, since the reader is dead
        self._end()

    def _gather(self) -> Any:
        """Wait for the answers of all ranks and return the one of rank 0; raises as `call`."""
        try:
            answers, lost = self._listen()
            failed = {rank: value for rank, (kind, value) in answers.items() if kind != OK}  # in order of failure
            if lost:
                raise ReplicaLostError("; ".join([lost, *(f"rank {rank}: {value}" for rank, value in failed.items())]))
            for rank, error in failed.items():
                raise error if isinstance(error, GmdError) else RuntimeError(f"rank {rank}: {error}")
        except BaseException:
            self._abandon()
            raise
        return answers[0][1]

    def _listen(self) -> tuple[dict[int, Answer], str | None]:
        """Collect answers until all are there, or one can no longer come.

        Returns:
            (rank -> answer in the order of arrival, the reason why some are missing or None).
        """
        answers: dict[int, Answer] = {}
        end = None
        # A pipe has an answer, or is closed; a sentinel is ready when its process has ended.
        while silent := [rank for rank in range(len(self._processes)) if rank not in answers]:
            sources = [self._pipes[rank] for rank in silent] + [self._processes[rank].sentinel for rank in silent]
            ready = wait(sources, None if end is None else max(0.0, end - time.monotonic()))
            if not ready:
                return answers, f"rank {silent[0]} did not answer in time after the others had ended"
            for rank in silent:
                if self._pipes[rank] in ready or self._processes[rank].sentinel in ready:
                    try:
                        answers[rank] = self._pipes[rank].recv()
                    except (EOFError, OSError):
                        return answers, self._obituary(rank)
            # The first answer starts a deadline for the rest. It is short after a failure, since ranks that did not
            # fail may wait in a collective for the one that did.
            kinds = {kind for kind, _ in answers.values()}
            if BROKEN in kinds:
                return answers, "a rank cannot go on"
            if kinds:
                end = time.monotonic() + (self._timeout_s if kinds == {OK} else min(PATIENCE_S, self._timeout_s))
        return answers, None

    def _obituary(self, rank: int) -> str:
        """The way in which a rank died."""
        process = self._processes[rank]
        process.join(1)
        code = process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"rank {rank} of the teacher died ({how})"


def _end_ranks(pipes: list[Connection], processes: list[BaseProcess], meeting: str) -> None:
    for pipe in pipes:
        pipe.close()  # ends a rank that waits for a call
    end = time.monotonic() + CLOSING_S
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()
        process.close()
    shutil.rmtree(meeting, ignore_errors=True)


def _send(pipe: Connection, call: bytes) -> None:
    with contextlib.suppress(OSError):  # the rank is dead, which the driver notices at its pipe
        pipe.send_bytes(call)


def _run_rank(
    make: Callable[[], Any], pipe: Connection, meeting: str, group: dict[str, Any], cuda: bool, threads: int
) -> None:
    """The process of a rank: make the model, then answer calls until the driver closes the pipe."""
    threading.Thread(target=_end_with_driver, args=(meeting,), daemon=True).start()
    torch.set_num_threads(threads)
    rank = group["rank"]
    made: list[Any] = []

    def start() -> None:
        if cuda:
            torch.cuda.set_device(rank)
        else:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on one node, whose name need not resolve
        dist.init_process_group("nccl" if cuda else "gloo", init_method=f"file://{meeting}/ranks", **group)
        made.append(make())

    pipe.send(_attempt(start))
    while made:
        try:
            work, args = pipe.recv()
        except (EOFError, OSError):
            break
        kind, answer = _attempt(work, made[0], *args)
        pipe.send((kind, None if kind == OK and rank else answer))
    if dist.is_initialized():
        dist.destroy_process_group()


def _attempt(work: Callable[..., Any], *args: Any) -> Answer:
    """Run `work` and turn its result or its error into an answer."""
    try:
        return OK, work(*args)
    except GmdError as error:
        return FAILED, error
    except torch.AcceleratorError as error:
        return BROKEN, _describe(error)
    except Exception as error:  # noqa: BLE001 -- the driver raises it
        return FAILED, _describe(error)


def _describe(error: Exception) -> str:
    """The error as text, since not every exception can be pickled."""
    return f"{type(error).__name__}: {one_line(error)}"


def _end_with_driver(meeting: str) -> None:
    """Body of a thread that ends this process when the driver has ended, even by SIGKILL.

    The main thread would not notice while it waits in a collective.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    while (
        parent.is_alive() and os.getppid() == parent.pid
    ):  # join() alone may miss it: a fork of the driver can keep its pipe open
        parent.join(5)
    shutil.rmtree(meeting, ignore_errors=True)
    os._exit(1)
