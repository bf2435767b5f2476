"""What each verb of the command line does; heavy imports come after what a person may have got wrong."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, config_text, load_config, require, resolved
from gmd_ray.config.places import below
from gmd_ray.config.secrets import redact
from gmd_ray.destinations import writing
from gmd_ray.ready import ANYWHERE
from gmd_ray.terminal import say, show

log = logging.getLogger("gmd_ray")


def _load(args: argparse.Namespace, *needs: str) -> Config:
    """The settings, held against their rules and against what the verbs in `needs` cannot do without."""
    from gmd_ray.quality import known_metrics

    given = [*args.settings, *(["generation.retry_failed=true"] if getattr(args, "retry_failed", False) else [])]
    cfg = load_config(given, known_metrics=known_metrics)
    for verb in needs:
        require(cfg, verb)
    if needs:
        check_out(cfg, files=needs[0] not in ANYWHERE)
    from gmd_ray.images.sets.inventory import check_sets

    if cfg.source.degradation is not None:
        from gmd_ray.images.degradation.degradations import make_degradation

        make_degradation(cfg.source.degradation, cfg.source.degradation_args)
    check_sets(cfg)
    return cfg


def adapt(args: argparse.Namespace) -> int:
    cfg = _load(args, "adapt")
    from gmd_ray.adapt import adapt

    result = adapt(cfg)
    show(result.table)
    for reason in result.reasons:
        say(reason)
    say(f"student  {result.student}")
    say(f"report   {result.report}")
    return 0


def check(args: argparse.Namespace) -> int:
    from gmd_ray.ready import check

    found = check(lambda: _load(args), args.run_of)
    show(found.as_json() if args.json else found.text())
    return 0 if found.ok else 2


def plan(args: argparse.Namespace) -> int:
    cfg = _load(args, "plan", *(["generate"] if args.probe else []))
    from gmd_ray.pairstore.cost import NAME
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
    PairStore(store_url(cfg.out)).write(NAME, plan.as_json())
    for line in inputs.sets:
        say(line)
    show("\n".join(["", plan.table(), *later_stages(cfg, inputs.sets)]))
    for warning in (stall_warning(cfg, plan), *(pool_warnings(cfg, probe) if probe else ())):
        if warning:
            log.warning("%s", warning)
    return 0


def generate(args: argparse.Namespace) -> int:
    cfg = _load(args, "generate")
    from gmd_ray.generation import generate
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run

    ready(cfg, "generate", save=False)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("generate") as recorder:
        say(generate(cfg, recorder))
    return 0


def finetune(args: argparse.Namespace) -> int:
    cfg = _load(args, "finetune")
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


def pretrain(args: argparse.Namespace) -> int:
    cfg = _load(args, "pretrain")
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run
    from gmd_ray.training import pretrain

    inputs = ready(cfg, "pretrain")
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("pretrain") as recorder:
        say(pretrain(cfg, recorder, inputs=inputs).path)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    cfg = _load(args, "evaluate")
    from gmd_ray.evaluation import evaluate, markdown, write_report
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetuned_path

    inputs = ready(cfg, "evaluate")
    students = {"baseline": str(cfg.student.path)}
    for name in ["adapted", *cfg.controls]:
        path = finetuned_path(cfg, name)
        if Path(path).exists():
            students[name] = path
        else:
            log.info("%s: no fine-tuned student at %s; left out", name, path)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("evaluate") as recorder:
        evaluation = evaluate(cfg, students, recorder, inputs=inputs)
        show(markdown(evaluation))
        say(f"report   {write_report(cfg, evaluation, recorder, inputs=inputs)}")
    return 0


def print_config(args: argparse.Namespace) -> int:
    print(config_text(_load(args)), end="")
    return 0


def export(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.pairstore.export import export_pairs, last_gate
    from gmd_ray.pairstore.store import store_url

    scorer, store = cfg.scorer, store_url(cfg.out)
    if not any(given.startswith(("preset=", "config=")) for given in args.settings):
        # What is not named is as in the last run, as for `gate` and `sheet`.
        given = {word.partition("=")[0].removeprefix("scorer.") for word in args.settings if word.startswith("scorer.")}
        scorer = last_gate(store, scorer, given)
    with writing("--to", args.to, folder=True):
        count = export_pairs(
            store, args.to, scorer.threshold, args.layout, fidelity=scorer.fidelity, bound=scorer.fidelity_bound
        )
    bound = "" if scorer.fidelity_bound is None else f" and {scorer.fidelity} bound {scorer.fidelity_bound:g}"
    say(f"{count} accepted pairs at threshold {scorer.threshold:g}{bound} written to {args.to} ({args.layout})")
    return 0


def verify(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.audit.verify import verify
    from gmd_ray.pairstore.store import find_store

    found = verify(find_store(args.store), args.deep)
    show(found)
    return 1 if found.findings else 0


def status(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.status import read_status
    from gmd_ray.pairstore.store import find_store

    show(read_status(find_store(args.store)))
    return 0


def gate(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.store import find_store
    from gmd_ray.pairstore.thresholds import read_gate

    view = read_gate(find_store(args.store), args.threshold, args.fidelity_bound)
    show(view.text())
    if args.html:
        from gmd_ray.evaluation.files import write_bytes
        from gmd_ray.evaluation.gate_page import gate_page

        with writing("--html", args.html, folder=False):
            write_bytes(args.html, redact(gate_page(view)).encode())
        show("")
        say(f"page     {args.html}")
    return 0


def sheet(args: argparse.Namespace) -> int:
    from gmd_ray.evaluation.files import write_bytes
    from gmd_ray.evaluation.sheet import make_sheet
    from gmd_ray.pairstore.store import find_store

    page = make_sheet(find_store(args.store), args.threshold, args.fidelity_bound, args.count)
    to = args.to or below(args.store, "sheet.html")
    with writing("--to", to, folder=False):
        write_bytes(to, redact(page).encode())
    say(f"sheet    {to}")
    return 0


def new_student(args: argparse.Namespace) -> int:
    from gmd_ray.students.latent.presets import new_latent_student

    vae = Path(args.vae) if args.vae else None
    with writing("--to", args.to, folder=True):
        count = new_latent_student(args.preset, Path(args.to), vae, args.scale, args.steps, args.seed)
    say(f"{args.preset}: {count / 1e6:,.1f} M untrained parameters in {args.to}")
    return 0


def encode_prompts(args: argparse.Namespace) -> int:
    cfg = _load(args, "encode-prompts")
    from gmd_ray.generation.prompts import prompts_folder
    from gmd_ray.teachers import encode_prompts

    to = args.to or prompts_folder(cfg.out)
    with writing("--to" if args.to else "out:", to, folder=True):
        found = encode_prompts(cfg.teacher, to, args.prompt)
    if found is cfg.teacher:
        say(f"{cfg.teacher.path}: the table beside the weights has every prompt; nothing to encode")
    else:
        say(f"teacher.prompt_embeddings={found.prompt_embeddings}")
    return 0


def list_names(args: argparse.Namespace) -> int:
    from gmd_ray.verbs.catalogues import table

    show(table(args.what))
    return 0


def demo(args: argparse.Namespace) -> int:
    from gmd_ray.demo.train_models import train_models

    train_models(args.to, args.only)
    return 0
