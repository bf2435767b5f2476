"""The preflight: every check that is possible before a run starts, in seconds, without Ray and without writing."""

from __future__ import annotations

import time
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.images.sets.listed import TARGET
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.planning.bursts import check_bursts
from gmd_ray.planning.data_sets import read_data_sets
from gmd_ray.planning.earlier_runs import check_finetunes, check_pretraining, check_store
from gmd_ray.planning.findings import ERROR, WARNING, Findings
from gmd_ray.planning.gates import check_gates, check_licence, check_methods, check_metrics
from gmd_ray.planning.images import check_images
from gmd_ray.planning.machine import check_machine, describe_fleet
from gmd_ray.planning.models import WeightCheck, check_teacher, check_weights, find_scale
from gmd_ray.planning.overlap import check_overlap
from gmd_ray.planning.places import check_disk, check_places

STAGES: dict[str, tuple[str, ...]] = {
    "adapt": ("generate", "finetune", "evaluate"),
    "generate": ("generate",),
    "finetune": ("finetune",),
    "pretrain": ("pretrain",),
    "evaluate": ("evaluate",),
    "plan": ("generate", "finetune", "evaluate"),
    "ablate": ("generate", "finetune", "evaluate"),
}
"""Verb -> the stages that it runs, or plans for."""


class Preflight:
    """The checks of one verb with one set of settings.

    Args:
        cfg: settings that satisfy their own rules (`gmd_ray.config`).
        verb: of `STAGES`.
        joins: the run joins a Ray cluster. What its nodes have is not known before, so that GPUs are not looked for,
            and weights that are missing here are warned of.
        probes: a plan that measures some images on this machine first.
    """

    def __init__(self, cfg: Config, verb: str, *, joins: bool = False, probes: bool = False) -> None:
        self.cfg, self.verb = cfg, verb
        self.inputs = RunInputs()
        """The listings that the checks made, for the run to go on with."""
        self.stages = [stage for stage in STAGES[verb] if verb != "plan" or _is_planned(cfg, stage)]
        self.undrawn = cfg.prepare is not None and not Path(cfg.out, "world", "world.json").is_file()
        """The images are drawn when the run starts, and can be looked at after that."""
        self._joins, self._probes = joins, probes
        self._here = not joins and (verb != "plan" or probes)
        self._scale: int | None = None
        self._unmeasured: frozenset[str] = frozenset()
        self.weights = WeightCheck(frozenset(), ())
        """The weight files that `ready` fetches once nothing stands in the way."""

    def run(self, found: Findings | None = None) -> Findings:
        """Run every check except those of images that are still to be drawn; findings are added to `found`."""
        start = time.perf_counter()
        found = Findings(self.verb) if found is None else found
        self._check_settings(found)
        if self.undrawn:
            made = f"prepare={self.cfg.prepare}"
            found.fact("data", "prepare", f"{made}: the images are drawn when the run starts, and looked at then")
        else:
            self._check_images(found)
        found.seconds = time.perf_counter() - start
        return found

    def after_drawing(self) -> Findings:
        """The checks of the images, once they have been drawn; after `run`."""
        found = Findings(self.verb)
        self._check_images(found)
        return found

    def _check_settings(self, found: Findings) -> None:
        cfg, stages = self.cfg, self.stages
        check_places(found, cfg)
        if self._here:
            check_machine(found, cfg, ["generate"] if self._probes else stages)
        elif self.verb == "plan":
            describe_fleet(found, cfg)
        if "generate" in stages or ("evaluate" in stages and cfg.evaluation.online):
            plans = self.verb == "plan" and not self._probes
            check_teacher(found, cfg, ERROR if self._here or plans else WARNING, weights=not plans)
            if self.verb in ("adapt", "plan"):
                check_licence(found, cfg)
        if not (self.verb == "pretrain" and cfg.pretrain.architecture):
            self._scale = find_scale(found, cfg, joins=self._joins)
        if self.verb == "plan" and cfg.plan.scale is not None:
            self._scale = cfg.plan.scale
        self.weights = check_weights(found, cfg, stages, here=self._here)
        self._unmeasured = self.weights.unmeasured if self._here else frozenset()
        if self.verb == "plan" or any(finding.code == "place" for finding in found.lines):
            return
        if "generate" in stages:
            check_store(found, cfg)
        if "finetune" in stages:
            check_finetunes(found, cfg, generated=self.verb == "finetune", inputs=self.inputs)
        if self.verb == "pretrain":
            check_pretraining(found, cfg, self.inputs)

    def _check_images(self, found: Findings) -> None:
        cfg, stages = self.cfg, self.stages
        sets = read_data_sets(found, cfg, stages, self.inputs)
        check_images(found, cfg, sets, self._scale)
        check_overlap(found, cfg, sets, generates="generate" in stages, evaluates="evaluate" in stages)
        if "evaluate" in stages:
            check_methods(found, cfg, self.inputs, ERROR if self._here else WARNING)
            valueless = check_metrics(found, cfg, sets, self._scale, self._unmeasured)
            if self.verb in ("adapt", "plan"):
                check_gates(found, cfg, valueless)
        if TARGET in sets and (photos := sets[TARGET].lq) is not None:
            check_bursts(found, photos)
        if self.verb != "plan":
            check_disk(found, cfg, sets, self._scale, stages)


def _is_planned(cfg: Config, stage: str) -> bool:
    """A plan needs the target and the teacher alone; of the later stages it looks at what is set."""
    if stage == "finetune":
        return bool(cfg.source.hq)
    if stage == "evaluate":
        return bool(cfg.evaluation.target_lq or cfg.evaluation.source_hq)
    return True
