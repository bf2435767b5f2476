"""Errors of Ray workers, carried to the driver as the errors that they are.

Ray wraps what a task raises in a traceback of many lines. A GmdError is one line for a user, so a worker returns it as
a value (`as_value`), and the driver raises it (`raise_if_error`, `answer_of`). Work in a Ray Data stream, whose return
value is a block of rows, leaves its error in the run's attempt log instead, from which the driver raises it; or it puts
the error into a text column (`as_text`), which the driver turns back into an error (`from_text`).
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gmd_ray import errors
from gmd_ray.errors import GmdError, ModelError, RefusedError

if TYPE_CHECKING:
    import ray

P = ParamSpec("P")
T = TypeVar("T")


def as_value(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | GmdError:
    """Call `call(*args, **kwargs)` in a worker; return its result, or the GmdError that it raised.

    Other exceptions are raised: they are faults of the program, and keep their traceback.
    """
    try:
        return call(*args, **kwargs)
    except GmdError as error:
        return error


def raise_if_error(answer: T | GmdError) -> T:
    """Return what a worker answered through `as_value`, or raise the GmdError that it is.

    Raises:
        GmdError: the answer is one.
    """
    if isinstance(answer, GmdError):
        raise answer
    return answer


def as_text(error: GmdError) -> str:
    """Write a GmdError as text, for a column of a Ray Data stream."""
    return json.dumps([type(error).__name__, str(error)])


def from_text(text: str) -> GmdError:
    """Make the GmdError that `as_text` wrote; a class outside `gmd_ray.errors` becomes a plain GmdError."""
    name, message = json.loads(text)
    if name == RefusedError.__name__:
        return RefusedError(message.split("; "))
    kind = getattr(errors, name, GmdError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, GmdError) else GmdError(message)


def answer_of(task: ray.ObjectRef, what: str, timeout_s: int) -> Any:
    """Wait for a task that runs before a stream, where nothing else guards against a stall, and return its result.

    Args:
        task: a task that calls `as_value`, or returns a GmdError in another way.
        what: what was not done, as the beginning of the error message of a task that does not end in time.
        timeout_s: `generation.no_progress_timeout_s`. A task that takes longer is cancelled.

    Raises:
        GmdError: the answer is one.
        ModelError: no answer in time.
        RayError: the task's process died, or it raised something that is no GmdError.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    try:
        answer = ray.get(task, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise ModelError(
            f"{what} in generation.no_progress_timeout_s={timeout_s}; see that the cluster has room, or raise that"
        ) from error
    return raise_if_error(answer)


def is_ray_error(error: BaseException) -> bool:
    """Return whether Ray itself raised this error. Does not import Ray: where nobody has, the error is not Ray's."""
    exceptions = sys.modules.get("ray.exceptions")
    return exceptions is not None and isinstance(error, exceptions.RayError)


def forget_locals(error: BaseException) -> None:
    """Forget the local variables of the calls that an exception and its causes went through.

    Ray Data gives up the actors of a failed stream by dropping its handles of them. The traceback may hold one in the
    variables of a call, and with it the actor and its share of the cluster, until the exception is collected as part
    of a reference cycle, which Python does when it likes.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            chain += [link.__cause__, link.__context__]
