"""The start of a stage: everything that it needs, and the loading of its model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gmd_ray.config import Config
from gmd_ray.errors import GmdError, ModelError, ReplicaLostError, ResumeMismatchError
from gmd_ray.generation.attempts.log import START
from gmd_ray.generation.attempts.remote import AnyAttemptLog
from gmd_ray.generation.fault_isolation import UNBOUNDED
from gmd_ray.generation.models import Models, model_configs
from gmd_ray.generation.watchdog import Bound
from gmd_ray.text import one_line

MAX_STARTS = 3
"""Number of deaths while loading a model (out of memory, for example) after which the run ends."""


@dataclass(frozen=True)
class Replica:
    """Everything that a stage needs to start: how to load its model, and the attempt log that it reports to."""

    load: Callable[[Any], Any]
    config: Any
    """StudentConfig, TeacherConfig or ScorerConfig."""
    log: AnyAttemptLog
    max_attempts: int
    bound: Bound = UNBOUNDED
    """Time that a batch may take."""
    own_process: bool = True
    """False in the driver's process, which the stage may neither end nor give its number of threads."""


def replica_of(
    cfg: Config, section: str, models: Models, log: AnyAttemptLog, bound: Bound, own_process: bool = True
) -> Replica:
    """Return what the stage of a model (student, teacher or scorer) needs in a run with these settings."""
    load, config = getattr(models, section), model_configs(cfg)[section]
    return Replica(load, config, log, cfg.generation.max_attempts, bound, own_process)


def load_model(section: str, replica: Replica) -> Any:
    """Load a model for a stage, and end the run where that cannot be done.

    An error that is raised in an actor comes back wrapped in a traceback, and Ray repeats for ever the start of an
    actor that dies while it loads. So the reason goes to the attempt log, from which the driver raises it.

    Raises:
        ModelError: the model cannot be loaded, or its worker died `MAX_STARTS` times while loading it.
        ResumeMismatchError: the model is not the one that made the store's rows.
    """
    log, me, stage = replica.log, replica.log.worker(), f"{START}{section}"
    [starts] = log.begin(stage, [me]) or [1]
    try:
        if starts > MAX_STARTS:
            raise ModelError(f"the {section} worker died {MAX_STARTS} times while loading its model (out of memory?)")
        model = _load(section, replica)
        facts = facts_of(model)
        agreed = log.agree(section, facts)
        if agreed != facts:
            raise ResumeMismatchError(
                f"{section}.path gives model {facts['fingerprint']}, the store's rows are of {agreed['fingerprint']} "
                f"(other weights, settings or precision); give another out=, or the old model"
            )
    except GmdError as error:
        log.fail(error)
        raise
    log.done(stage, [me])
    return model


def _load(section: str, replica: Replica) -> Any:
    """Load the model; whatever it raises becomes a GmdError, or ends this process if another may do better."""
    try:
        return replica.load(replica.config)
    except BaseException as error:
        if not replica.own_process and isinstance(error, KeyboardInterrupt | SystemExit):
            raise  # Ctrl-C and SIGTERM, which the driver hears
        if replica.own_process and (isinstance(error, ReplicaLostError) or hasattr(error, "ray_terminate_msg")):
            os._exit(1)  # as if this process had died: Ray starts another
        if isinstance(error, GmdError):
            raise
        raise ModelError(f"the {section} could not be loaded: {type(error).__name__}: {one_line(error)}") from error


def facts_of(model: Any) -> dict[str, Any]:
    """Return what must be the same for every worker of a stage, and for every run on a store."""
    facts = {"fingerprint": model.fingerprint}
    if hasattr(model, "higher_is_better"):
        facts["higher_is_better"] = model.higher_is_better
    return facts
