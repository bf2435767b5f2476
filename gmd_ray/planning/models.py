"""Models and weights: what is missing on this machine and where it goes, in one list, before anything starts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.network import reachable
from gmd_ray.planning.findings import ERROR, WARNING, Findings
from gmd_ray.quality import Lacking, lacking, scorer_lacks


def check_teacher(found: Findings, cfg: Config, level: str, *, weights: bool) -> None:
    """The teacher's directory, whole; or a hub id that is in the cache or in reach; and its prompts.

    Args:
        level: of what is missing: the machine that this runs on need not be the one that projects.
        weights: False where its config files are enough, for a plan.
    """
    from gmd_ray.teachers import find_prompts, missing_parts

    lines = missing_parts(cfg.teacher, weights=weights)
    for line in lines:
        found.say(level, "weights", "teacher.path", line)
    if lines or not weights:
        return
    from gmd_ray.generation.prompts import prompts_folder

    try:
        find_prompts(replace(cfg.teacher), prompts_folder(cfg.out))
    except GmdError as error:
        found.say(level, "weights", "teacher.prompt", str(error))


def find_scale(found: Findings, cfg: Config, *, joins: bool) -> int | None:
    """By how much the student enlarges; None where it cannot be loaded here, which is an error.

    A factory of a team's own module may be importable on a cluster's workers alone, which is none.
    """
    from gmd_ray.students import student_scale

    if not cfg.student.path:
        return None
    try:
        return student_scale(cfg.student)
    except GmdError as error:
        if cfg.student.factory is None or not joins:
            found.error("student", "student.path", str(error))
        return None


def check_weights(found: Findings, cfg: Config, stages: Collection[str], *, here: bool) -> set[str]:
    """The gate's weights and those of every metric.

    A gate without them ends the run, so it is an error where the run's workers are on this machine. A metric without
    them is a column without values.

    Returns:
        the metrics of the evaluation that will have no value.
    """
    gate: list[Lacking] = []
    metrics: list[Lacking] = []
    if "generate" in stages:
        with found.errors_of("weights", "scorer.path"):
            gate = scorer_lacks(cfg.scorer)
    if "evaluate" in stages:
        for name in cfg.evaluation.metrics:
            metrics += lacking(name, cfg.evaluation.weights.get(name), f"evaluation.weights.{name}")
    answers = reachable(_downloads([*gate, *metrics]))
    for lack, level in [(lack, ERROR if here else WARNING) for lack in gate] + [(lack, WARNING) for lack in metrics]:
        if lack.url is not None and answers.get(lack.url):
            found.fact("weights", lack.setting, f"{lack.metric}: {lack.reason}; it will be downloaded")
            continue
        offline = "; it cannot be downloaded from here" if lack.url is not None else ""
        outcome = "" if lack in gate else "; until then the metric has no value"
        nodes = "" if here else " (on this machine; the workers' may have it)"
        found.say(level, "weights", lack.setting, f"{_title(lack, gate)}: {lack.reason}{offline}{outcome}{nodes}")
    if "finetune" in stages and cfg.training.perceptual and cfg.training.perceptual_weights:
        path = cfg.training.perceptual_weights
        if not Path(path).is_file():
            found.error("weights", "training.perceptual_weights", f"training.perceptual_weights={path}: no such file")
    return {lack.metric for lack in metrics if lack.url is None or not answers.get(lack.url)}


def _title(lack: Lacking, gate: Collection[Lacking]) -> str:
    return f"the gate's {lack.metric}" if lack in gate else f"the metric {lack.metric}"


def _downloads(lacks: Collection[Lacking]) -> list[str]:
    """Addresses to try; none where the user asked to stay offline."""
    from huggingface_hub import constants

    return [] if constants.HF_HUB_OFFLINE else [lack.url for lack in lacks if lack.url is not None]
