"""Metrics that cannot have a value on these data, and promotion gates that therefore can never pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from gmd_ray.config import Config
from gmd_ray.images.sets.listed import SOURCE_TEST, TARGET_TEST
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.planning.data_sets import DataSet
from gmd_ray.planning.findings import Findings
from gmd_ray.planning.models import check_teacher
from gmd_ray.quality import MIN_SIDE, known_metrics

_SETS = {"target": TARGET_TEST, "source": SOURCE_TEST}


def check_metrics(
    found: Findings, cfg: Config, sets: Mapping[str, DataSet], scale: int | None, lacking: Collection[str]
) -> dict[tuple[str, str], str]:
    """Refuse an evaluation of which no metric can have a value, and name the metrics that cannot.

    Args:
        lacking: metrics whose weights are missing, which were told.

    Returns:
        (test set, metric) -> why it has no value there.
    """
    tests = [name for name in _SETS if _is_set(cfg, name)]
    valueless: dict[tuple[str, str], str] = {}
    for test in tests:
        for metric in cfg.evaluation.metrics:
            why = "its weights are missing" if metric in lacking else _why_none(cfg, test, metric, sets, scale)
            if why:
                valueless[test, metric] = why
    lost = [m for m in cfg.evaluation.metrics if tests and all((test, m) in valueless for test in tests)]
    told = {metric: valueless[tests[0], metric] for metric in lost}
    if lost and len(lost) == len(cfg.evaluation.metrics):
        whys = "; ".join(f"{metric}: {why}" for metric, why in told.items())
        found.error("metrics", "evaluation.metrics", f"evaluation.metrics: none of them can have a value ({whys})")
        return valueless
    for metric, why in told.items():
        if metric not in lacking:
            found.warn("metrics", "evaluation.metrics", f"evaluation.metrics: {metric} will have no value: {why}")
    return valueless


def check_methods(found: Findings, cfg: Config, inputs: RunInputs, level: str) -> None:
    """Look for what the further rows of the table need: checkpoints, teachers, and an output for every test image.

    Args:
        level: level of the findings about teachers; a warning if another machine may be the one that projects.
    """
    e = cfg.evaluation
    if not e.methods and e.published is None:
        return
    from gmd_ray.evaluation.items import held_out_items
    from gmd_ray.evaluation.methods import find_outputs, plan_methods
    from gmd_ray.evaluation.summaries.published import published_rows

    with found.errors_of("methods", "evaluation.methods"):
        methods = plan_methods(cfg, dict.fromkeys(("baseline", "adapted", *cfg.controls), ""))
        for method in methods:
            if method.name in e.methods and method.teacher is not None:
                check_teacher(found, replace(cfg, teacher=method.teacher), level, weights=True)
        if any(method.folder for method in methods):
            find_outputs(methods, held_out_items(cfg, inputs))
    with found.errors_of("methods", "evaluation.published"):
        if e.published is not None:
            published_rows(e.published)


def check_gates(found: Findings, cfg: Config, valueless: Mapping[tuple[str, str], str]) -> None:
    """Warn of promotion gates that cannot be measured, because of which nothing would be promoted."""
    if not cfg.tracking.enabled:
        return
    for i, gate in enumerate(cfg.tracking.gates):
        key = f"tracking.gates[{i}]"
        if gate.metric not in cfg.evaluation.metrics:
            why = f"{gate.metric} is not among evaluation.metrics"
        elif not _is_set(cfg, gate.dataset):
            why = f"evaluation.{'target_lq' if gate.dataset == 'target' else 'source_hq'} is not set"
        elif (gate.dataset, gate.metric) in valueless:
            why = valueless[gate.dataset, gate.metric]
        else:
            continue
        found.warn(
            "gates",
            key,
            f"{key} ({gate.metric} on {gate.dataset}, against {gate.against}) can never hold, so that nothing will be "
            f"promoted: {why}; mend that, or name gates that can be measured, as "
            "tracking.gates=[{metric: niqe, dataset: target, against: baseline}]",
        )


def check_licence(found: Findings, cfg: Config) -> None:
    """Tell the licence class of the teacher, and warn if it is one for which nothing would be promoted."""
    from gmd_ray.teachers import teacher_licence

    licence = teacher_licence(cfg.teacher)
    if cfg.tracking.enabled and cfg.tracking.require_commercial_teacher and not licence.commercial:
        found.warn(
            "gates",
            "tracking.require_commercial_teacher",
            f"tracking.require_commercial_teacher: the teacher's licence is {licence}, so that nothing will be "
            "promoted; take another teacher (`gmd-ray ls teachers`), or set teacher.licence=commercial if you may "
            "use it",
        )
    else:
        found.fact("licence", "teacher.path", f"the teacher's licence: {licence}")


def _is_set(cfg: Config, test: str) -> bool:
    return bool(cfg.evaluation.target_lq if test == "target" else cfg.evaluation.source_hq)


def _why_none(cfg: Config, test: str, metric: str, sets: Mapping[str, DataSet], scale: int | None) -> str | None:
    info = known_metrics()[metric]
    if info.needs_reference and test == "target" and not cfg.evaluation.target_hq:
        return "it needs ground truth, and evaluation.target_hq is not set"
    if not info.per_image and metric != "fid":
        return "it has no value for single images"
    data = sets.get(_SETS[test])
    if data is None:
        return None
    if metric == "fid" and data.listed.count < 2:
        return "it compares sets of two images or more"
    side, factor = (data.hq, 1) if data.hq is not None else (data.lq, scale)
    if side is None or factor is None:
        return None
    border = 2 * cfg.evaluation.crop_border if info.needs_reference else 0
    smallest = MIN_SIDE.get(metric, 1)
    sizes = [header.size for header in side.headers if header.size is not None]
    if sizes and all(min(size) * factor - border < smallest for size in sizes):
        return f"it needs {smallest + border} pixels on each side, and every image of the {test} test is smaller"
    return None
