"""How an error of a Ray worker reaches the driver, and through it the user."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from gmd_ray.errors import GmdError, ModelError


def answer_of(task: ray.ObjectRef, what: str, timeout_s: int) -> Any:
    """What a task returns that comes before the stream, where nothing else guards against a stall.

    A GmdError is returned by the task, and raised here: raised there it would come back wrapped in a traceback.

    Raises:
        ModelError: no answer in time; `what` says what was not done.
        RayError: the task broke.
    """
    try:
        answer = ray.get(task, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(task, force=True)
        raise ModelError(
            f"{what} in generation.no_progress_timeout_s={timeout_s}; see that the cluster has room, or raise that"
        ) from error
    if isinstance(answer, GmdError):
        raise answer
    return answer
