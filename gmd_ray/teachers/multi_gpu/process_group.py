"""Processes that run one model together, driven from a process that is none of them (ray.md 2).

The driver stays outside the process group: it never waits in a collective, which a dead peer would make endless, and
holds no device that an error could break. Ranks end when their driver does, however it ends.
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

TIMEOUT_S = 600.0
"""Longest wait of a rank for the others in one collective, and of the driver for the last rank after the first."""

PATIENCE_S = 5.0
"""How long the others may go on after a rank has failed; those that met the same error say so at once."""

CLOSING_S = 5.0
"""For a rank to end by itself."""

OK, FAILED, BROKEN = "ok", "failed", "broken"
Answer = tuple[str, Any]
"""OK and the result (of rank 0, None of the others); FAILED or BROKEN and the error: a GmdError, or its words.
BROKEN is a process in which nothing more can be done, as after a CUDA error."""


class Ranks:
    """k processes in one process group, each with its own model; a call runs in all of them.

    After any error the ranks are ended: one may have failed where another went on, and a collective left over would be
    taken for one of the next call.
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
            make: runs in each rank, in the process group; must pickle.
            cuda: rank r gets the r-th device that this process sees, and NCCL; else CPUs and Gloo.
            threads: torch threads of each rank.
            timeout_s: see TIMEOUT_S.

        Raises:
            GmdError: from `make`.
            ReplicaLostError: a rank that died, or that others waited for in vain.
            RuntimeError: any other error of a rank.
        """
        self._timeout_s = timeout_s
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._senders: list[threading.Thread] = []
        self.meeting = tempfile.mkdtemp(prefix="gmd-ranks-")
        """Folder where the ranks find each other."""
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
        """Of the ranks, in order; none once closed."""
        return [] if self.closed else [process.pid for process in self._processes]

    @property
    def closed(self) -> bool:
        return not self._end.alive

    def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """`work(model, *args)` in every rank; the answer of rank 0. All of it must pickle.

        Raises:
            GmdError, ReplicaLostError, RuntimeError: as the constructor, from `work`.
        """
        assert not self.closed
        call = pickle.dumps((work, args), pickle.HIGHEST_PROTOCOL)
        # In threads: a rank that does not read must not keep the driver from listening to the others.
        self._senders = [threading.Thread(target=_send, args=(pipe, call), daemon=True) for pipe in self._pipes]
        for sender in self._senders:
            sender.start()
        return self._gather()

    def close(self) -> None:
        """End the ranks; so does the end of this object."""
        self._end()

    def _abandon(self) -> None:
        """End the ranks without waiting for what they are at."""
        for process in self._processes:
            process.kill()
        for sender in self._senders:
            sender.join(CLOSING_S)  # nobody reads any more
        self._end()

    def _gather(self) -> Any:
        """Wait for every rank's answer; returns the one of rank 0."""
        try:
            answers, lost = self._listen()
            failed = {rank: value for rank, (kind, value) in answers.items() if kind != OK}  # the first to fail first
            if lost:
                raise ReplicaLostError("; ".join([lost, *(f"rank {rank}: {value}" for rank, value in failed.items())]))
            for rank, error in failed.items():
                raise error if isinstance(error, GmdError) else RuntimeError(f"rank {rank}: {error}")
        except BaseException:
            self._abandon()
            raise
        return answers[0][1]

    def _listen(self) -> tuple[dict[int, Answer], str | None]:
        """The answers by rank, and why some are missing."""
        answers: dict[int, Answer] = {}
        end = None
        while silent := [rank for rank in range(len(self._processes)) if rank not in answers]:
            sources = [self._pipes[rank] for rank in silent] + [self._processes[rank].sentinel for rank in silent]
            ready = wait(sources, None if end is None else max(0.0, end - time.monotonic()))
            if not ready:
                return answers, f"rank {silent[0]} went on for too long after the others had ended"
            for rank in silent:
                if self._pipes[rank] in ready or self._processes[rank].sentinel in ready:
                    try:
                        answers[rank] = self._pipes[rank].recv()
                    except (EOFError, OSError):
                        return answers, self._obituary(rank)
            kinds = {kind for kind, _ in answers.values()}
            if BROKEN in kinds:
                return answers, "a rank cannot go on"
            if kinds:
                end = time.monotonic() + (self._timeout_s if kinds == {OK} else min(PATIENCE_S, self._timeout_s))
        return answers, None

    def _obituary(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(1)
        code = process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"rank {rank} of the teacher died ({how})"


def _end_ranks(pipes: list[Connection], processes: list[BaseProcess], meeting: str) -> None:
    for pipe in pipes:
        pipe.close()  # a rank that waits for a call ends
    end = time.monotonic() + CLOSING_S
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()
        process.close()
    shutil.rmtree(meeting, ignore_errors=True)


def _send(pipe: Connection, call: bytes) -> None:
    with contextlib.suppress(OSError):  # the rank is dead, as the driver will hear
        pipe.send_bytes(call)


def _run_rank(
    make: Callable[[], Any], pipe: Connection, meeting: str, group: dict[str, Any], cuda: bool, threads: int
) -> None:
    """Body of a rank: make the model, then answer calls until the driver closes the pipe."""
    threading.Thread(target=_end_with_driver, args=(meeting,), daemon=True).start()
    torch.set_num_threads(threads)
    rank = group["rank"]
    made: list[Any] = []

    def start() -> None:
        if cuda:
            torch.cuda.set_device(rank)
        else:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node; its name need not resolve
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
    try:
        return OK, work(*args)
    except GmdError as error:
        return FAILED, error
    except torch.AcceleratorError as error:
        return BROKEN, _describe(error)
    except Exception as error:  # noqa: BLE001 -- it is the driver's to raise
        return FAILED, _describe(error)


def _describe(error: Exception) -> str:
    # As text: not every exception can be pickled.
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _end_with_driver(meeting: str) -> None:
    """Wait, in a thread, for the driver's end, SIGKILL included; a rank in a collective would not notice it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and os.getppid() == parent.pid:  # a fork of the driver could keep the pipe of join() open
        parent.join(5)
    shutil.rmtree(meeting, ignore_errors=True)
    os._exit(1)
