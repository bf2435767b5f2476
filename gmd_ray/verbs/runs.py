"""Verbs that need settings: a whole run, its stages, and what is said before one."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gmd_ray.config.explain import explain
from gmd_ray.config.load import config_text, load_config, resolved
from gmd_ray.config.places import below
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.terminal import say, show, show_json
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings

log = logging.getLogger("gmd_ray")

CHECKED = ("adapt", "generate", "finetune", "pretrain", "evaluate", "plan", "ablate")
"""Verbs that have a preflight."""


def register(verbs: Verbs) -> None:
    """Add adapt, check, plan, generate, finetune, pretrain, evaluate and config."""
    settings, retry = verbs.settings, verbs.retry
    verbs.add("adapt", run_adapt, "the whole run: generate, fine-tune, evaluate, register", [settings, retry])
    check = verbs.add(
        "check", run_check, "look for what stands in the way of a run, in seconds", [settings, verbs.json]
    )
    check.add_argument("--for", dest="run_of", default="adapt", choices=CHECKED, help="the verb to check; adapt")
    plan = verbs.add(
        "plan", run_plan, "say what a run will take: images, forwards, hours, disk, cost", [settings, verbs.json]
    )
    plan.add_argument("--probe", type=count, metavar="N", help="measure N images through the real stages first")
    verbs.add("generate", run_generate, "Stages 0 to 1b: write the pair store", [settings, retry])
    verbs.add("finetune", run_finetune, "Stage 2 on an existing pair store", [settings])
    text = "train a student on the source pairs, from scratch or from a checkpoint"
    verbs.add("pretrain", run_pretrain, text, [settings])
    text = "measure the baseline and the adapted student, write table and report"
    evaluate = verbs.add("evaluate", run_evaluate, text, [settings])
    text = "restore nothing: judge the gates and write tables and report anew, from what RUN has measured"
    evaluate.add_argument("--from-metrics", nargs="?", const="", metavar="RUN", help=text)
    config = verbs.add("config", run_config, "print the resolved settings and stop", [settings])
    text = "print every setting, or a section or a single one, with its description, range and default"
    config.add_argument("--explain", nargs="?", const="", metavar="KEY", help=text)


def run_adapt(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "adapt")
    from gmd_ray.adapt import adapt

    result = adapt(cfg)
    show(result.table)
    for reason in result.reasons:
        say(reason)
    say(f"student  {result.student}")
    say(f"report   {result.report}")
    if result.unsent:
        say(f"mlflow   {result.unsent}")
    return _judged(result.reasons)


def run_check(args: argparse.Namespace) -> int:
    from gmd_ray.ready import check

    found = check(lambda: load_settings(args), args.run_of)
    show(found.as_json() if args.json else found.text())
    return found.exit_code


def run_plan(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "plan", *(["generate"] if args.probe else []))
    from gmd_ray.pairstore.cost import PLAN_FILE
    from gmd_ray.pairstore.store import PairStore, store_url
    from gmd_ray.planning.plan import later_stages, make_plan, pool_warnings, stall_warning, survey
    from gmd_ray.planning.probe import run_probe
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready

    inputs = ready(cfg, "plan", save=False, probes=bool(args.probe))
    jobs, unreadable = survey(cfg, inputs)
    probe = None
    if args.probe:
        with ray_session(cfg):
            probe = run_probe(cfg, jobs, args.probe)
    plan = make_plan(cfg, jobs, unreadable, probe)
    PairStore(store_url(cfg.out)).write(PLAN_FILE, plan.as_json())
    warnings = [line for line in (stall_warning(cfg, plan), *(pool_warnings(cfg, probe) if probe else ())) if line]
    if args.json:
        sets = [{"role": each.role, "count": each.count} for each in inputs.sets]
        show_json({**plan.as_json(), "sets": sets, "warnings": warnings})
        return 0
    for line in inputs.sets:
        say(line)
    show("\n".join(["", plan.table(), *later_stages(cfg, inputs.sets)]))
    for warning in warnings:
        log.warning("%s", warning)
    return 0


def run_generate(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "generate")
    from gmd_ray.generation import generate
    from gmd_ray.planning.plan import keep_prediction
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run

    inputs = ready(cfg, "generate", save=False)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("generate") as recorder:
        keep_prediction(cfg, inputs)
        say(generate(cfg, recorder, inputs=inputs))
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "finetune")
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetune

    inputs = ready(cfg, "finetune")
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                say(finetune(cfg, name, recorder, inputs=inputs).path)
    return 0


def run_pretrain(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "pretrain")
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run
    from gmd_ray.training import pretrain

    inputs = ready(cfg, "pretrain")
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("pretrain") as recorder:
        say(pretrain(cfg, recorder, inputs=inputs).path)
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    if args.from_metrics is not None:
        return _from_metrics(args)
    cfg = load_settings(args, "evaluate")
    from gmd_ray.evaluation import evaluate, markdown
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.report import write_report
    from gmd_ray.storage import is_file, is_folder
    from gmd_ray.tracking import record_outcome, start_run
    from gmd_ray.training import finetuned_path

    inputs = ready(cfg, "evaluate")
    students = {"baseline": str(cfg.student.path)}
    for name in ["adapted", *cfg.controls]:
        path = finetuned_path(cfg, name)
        if is_file(path) or is_folder(path):
            students[name] = path
        else:
            log.info("%s: no fine-tuned student at %s; left out", name, path)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        with run.stage("evaluate") as recorder:
            evaluation = evaluate(cfg, students, recorder, inputs=inputs)
            show(markdown(evaluation))
            say(f"report   {write_report(cfg, evaluation, recorder, inputs=inputs)}")
        record_outcome(cfg, run, evaluation)
    return 0


def _from_metrics(args: argparse.Namespace) -> int:
    """Judge and report the figures of an earlier evaluation; settings are those of its run, and others given."""
    run, settings = str(args.from_metrics), list(args.settings)
    if "=" in run.partition("?")[0] and not Path(run).exists():  # `evaluate --from-metrics out=runs/a`
        run, settings = "", [run, *settings]
    from gmd_ray.storage import is_file

    saved = below(run, "config.yaml")
    if run:
        if not is_file(saved):
            raise ConfigError(f"evaluate --from-metrics {run}: no config.yaml there; give the directory of a run")
        settings = [*([] if any(word.startswith("config=") for word in settings) else [f"config={saved}"]), *settings]
        settings.append(f"out={run}")
    from gmd_ray.quality import known_metrics

    cfg = load_config(settings, check_paths=False, known_metrics=known_metrics)  # the photos may be elsewhere by now
    from gmd_ray.evaluation import load_evaluation, markdown, record
    from gmd_ray.report import write_report
    from gmd_ray.tracking import judge

    evaluation = replace(load_evaluation(cfg.out), published=cfg.evaluation.published)
    record(cfg, evaluation)
    show(markdown(evaluation))
    decision = judge(cfg, evaluation)
    for reason in decision.reasons:
        say(reason)
    say(f"report   {write_report(cfg, evaluation, decision=decision)}")
    return _judged(decision.reasons)


def _judged(reasons: Sequence[str]) -> ExitCode:
    """The status of a command that judged a student: REFUSED if a gate refuses it (`tracking.Decision.reasons`)."""
    return ExitCode.REFUSED if any(reason.startswith("refused") for reason in reasons) else ExitCode.DONE


def run_config(args: argparse.Namespace) -> int:
    if args.explain is not None:
        if args.settings or "=" in args.explain:
            raise ConfigError("config --explain prints the defaults; leave out --explain to print these settings")
        print(explain(args.explain), end="")
        return 0
    print(config_text(load_settings(args)), end="")
    return 0
