"""Checks of the models and weight files: one list of what is missing and where it goes, before a run starts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.network import reachable
from gmd_ray.planning.findings import ERROR, FACT, WARNING, Findings
from gmd_ray.quality import MissingWeights, fetch_command, missing_scorer_weights, missing_weights
from gmd_ray.weights import node_copy

log = logging.getLogger("gmd_ray")


def check_teacher(found: Findings, cfg: Config, level: str, *, weights: bool) -> None:
    """Check that the teacher's directory is complete, or its hub id in the cache or in reach, and check its prompts.

    Args:
        level: level of the findings; a warning if another machine may be the one that projects.
        weights: False if the teacher's config files are enough, as for a plan.
    """
    from gmd_ray.teachers import find_prompts, missing_parts
    from gmd_ray.teachers.catalogue.distilled import step_distilled

    lines = missing_parts(cfg.teacher, weights=weights)
    for line in lines:
        found.say(level, "weights", "teacher.path", line)
    if (refusal := step_distilled(cfg.teacher)) is not None:
        found.error("teacher", "teacher.path", refusal)
    if lines or not weights:
        return
    from gmd_ray.generation.prompts import prompts_folder

    try:
        find_prompts(replace(cfg.teacher), prompts_folder(cfg.out))
    except GmdError as error:
        found.say(level, "weights", "teacher.prompt", str(error))


def find_scale(found: Findings, cfg: Config, *, joins: bool) -> int | None:
    """Load the student's scale, the factor by which it enlarges; None if it cannot be loaded here.

    That is an error, except for a factory on a cluster (`joins`): its module may be importable on the workers alone.
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


@dataclass(frozen=True)
class WeightCheck:
    """The outcome of `check_weights`."""

    unmeasured: frozenset[str]
    """Metrics of the evaluation that will have no value."""
    to_fetch: tuple[MissingWeights, ...]
    """Files that the driver downloads before the run starts (`fetch_weights`)."""


def check_weights(found: Findings, cfg: Config, stages: Collection[str], *, here: bool) -> WeightCheck:
    """Look for the weight files of the scorer and of every metric, and list what is missing.

    A missing file is no obstacle if its server answers: the driver fetches it, to a place that a cluster's workers may
    not share, which is a warning then. Otherwise a scorer without its files
    ends the run, which is an error if the run's workers are on this machine; a metric without them is a column
    without values.
    """
    scorer: list[MissingWeights] = []
    metrics: list[MissingWeights] = []
    if "generate" in stages:
        with found.errors_of("weights", "scorer.path"):
            scorer = missing_scorer_weights(cfg.scorer)
    if "evaluate" in stages:
        e = cfg.evaluation
        for name in e.metrics:
            metrics += missing_weights(name, e.weights.get(name), f"evaluation.weights.{name}", e.weights_dir)
    answers = reachable(_addresses([*scorer, *metrics]))
    to_fetch = [entry for entry in (*scorer, *metrics) if entry.file is not None and answers.get(entry.file.url)]
    offline: list[tuple[str, MissingWeights]] = []
    for entry in (*scorer, *metrics):
        of_scorer = entry.setting.startswith("scorer.")
        if entry in to_fetch:
            assert entry.file is not None
            workers = "" if here else "; the workers need it at the same place"
            found.say(
                FACT if here else WARNING,
                "weights",
                entry.setting,
                f"{entry.metric}: {entry.file.name} is fetched before the run starts, to {entry.place}{workers}",
            )
            continue
        level = ERROR if of_scorer and here else WARNING
        offline.append((level, entry))
        unreachable = "; it cannot be downloaded from here" if entry.file is not None else ""
        outcome = "" if of_scorer else "; until then the metric has no value"
        nodes = "" if here else " (on this machine; the workers' may have it)"
        what = f"the scorer's metric {entry.metric}" if of_scorer else f"the metric {entry.metric}"
        found.say(level, "weights", entry.setting, f"{what}: {entry.reason}{unreachable}{outcome}{nodes}")
    _say_how_to_fetch(found, offline)
    if "finetune" in stages and cfg.training.perceptual and cfg.training.perceptual_weights:
        path = cfg.training.perceptual_weights
        with found.errors_of("weights", "training.perceptual_weights"):
            if not node_copy(path).is_file():
                raise ConfigError(f"training.perceptual_weights={path}: no such file")
    unmeasured = frozenset(entry.metric for entry in metrics if entry not in to_fetch)
    return WeightCheck(unmeasured, tuple(to_fetch))


def fetch_weights(check: WeightCheck) -> None:
    """Download what `check_weights` found to be missing and in reach, before Ray starts.

    Raises:
        FetchError: a file of the scorer that cannot be downloaded. A metric's file that cannot is a warning: the
            metric has no value then.
    """
    from gmd_ray.quality.fetch import FetchError, download_all

    for of_scorer in (True, False):
        entries = [entry for entry in check.to_fetch if entry.setting.startswith("scorer.") == of_scorer]
        try:
            download_all([(entry.file, entry.place) for entry in entries if entry.file and entry.place])
        except FetchError as error:
            if of_scorer:
                raise
            log.warning("%s; the metric has no value", error)


def _say_how_to_fetch(found: Findings, offline: Collection[tuple[str, MissingWeights]]) -> None:
    """Add the one command that gets the missing files, at the level of the worst of them."""
    command = fetch_command([entry for _, entry in offline])
    if command is not None:
        level = ERROR if any(level == ERROR for level, entry in offline if entry.file is not None) else WARNING
        rooms = {entry.setting.partition(".")[0] for _, entry in offline}
        keys = {"scorer": "scorer.weights=DIR", "evaluation": "evaluation.weights_dir=DIR"}
        settings = [text for room, text in keys.items() if room in rooms]
        found.say(
            level,
            "weights",
            "",
            f"the missing weight files come with `{command}` on a machine with internet access; copy DIR here and set "
            f"{' '.join(settings)}",
        )


def _addresses(missing: Collection[MissingWeights]) -> list[str]:
    """The addresses of these files; none if the user asked to stay offline."""
    from huggingface_hub import constants

    return [] if constants.HF_HUB_OFFLINE else [entry.file.url for entry in missing if entry.file is not None]
