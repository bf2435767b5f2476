"""What each verb of the command line does; heavy imports come after what a person may have got wrong."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.config.load import check_out, load_config, require, resolved
from gmd_ray.destinations import writing
from gmd_ray.ready import ANYWHERE

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
    from gmd_ray.images.inventory import check_sets

    if cfg.source.degradation is not None:
        from gmd_ray.images.degradations import make_degradation

        make_degradation(cfg.source.degradation, cfg.source.degradation_args)
    check_sets(cfg)
    return cfg


def adapt(args: argparse.Namespace) -> int:
    cfg = _load(args, "adapt")
    from gmd_ray.adapt import adapt

    result = adapt(cfg)
    print(result.table)
    for reason in result.reasons:
        print(reason)
    print(f"student  {result.student}")
    print(f"report   {result.report}")
    return 0


def check(args: argparse.Namespace) -> int:
    from gmd_ray.ready import check

    found = check(lambda: _load(args), args.run_of)
    print(found.as_json() if args.json else found.text())
    return 0 if found.ok else 2


def plan(args: argparse.Namespace) -> int:
    cfg = _load(args, "plan", *(["generate"] if args.probe else []))
    from gmd_ray.generation.plan import later_stages, make_plan, pool_warnings, stall_warning, survey
    from gmd_ray.generation.probe import run_probe
    from gmd_ray.generation.spent import NAME
    from gmd_ray.generation.store import PairStore, store_url
    from gmd_ray.ready import ready
    from gmd_ray.session import ray_session

    listed = ready(cfg, "plan", save=False, probes=bool(args.probe))
    jobs, unreadable = survey(cfg)
    probe = None
    if args.probe:
        with ray_session(cfg):
            probe = run_probe(cfg, jobs, args.probe)
    plan = make_plan(cfg, jobs, unreadable, probe)
    PairStore(store_url(cfg.out)).write(NAME, plan.as_json())
    print(*listed, "", plan.table(), *later_stages(cfg, listed), sep="\n")
    for warning in (stall_warning(cfg, plan), *(pool_warnings(cfg, probe) if probe else ())):
        if warning:
            log.warning("%s", warning)
    return 0


def generate(args: argparse.Namespace) -> int:
    cfg = _load(args, "generate")
    from gmd_ray.generation import generate
    from gmd_ray.ready import ready
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run

    ready(cfg, "generate", save=False)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("generate") as recorder:
        print(generate(cfg, recorder))
    return 0


def finetune(args: argparse.Namespace) -> int:
    cfg = _load(args, "finetune")
    from gmd_ray.ready import ready
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetune

    ready(cfg, "finetune")
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                print(finetune(cfg, name, recorder).path)
    return 0


def pretrain(args: argparse.Namespace) -> int:
    cfg = _load(args, "pretrain")
    from gmd_ray.ready import ready
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import pretrain

    ready(cfg, "pretrain")
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("pretrain") as recorder:
        print(pretrain(cfg, recorder).path)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    cfg = _load(args, "evaluate")
    from gmd_ray.evaluation import evaluate, write_report
    from gmd_ray.ready import ready
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetuned_path

    ready(cfg, "evaluate")
    students = {"baseline": str(cfg.student.path)}
    for name in ["adapted", *cfg.controls]:
        path = finetuned_path(cfg, name)
        if Path(path).exists():
            students[name] = path
        else:
            log.info("%s: no fine-tuned student at %s; left out", name, path)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("evaluate") as recorder:
        evaluation = evaluate(cfg, students, recorder)
        print(evaluation.table())
        print(f"report   {write_report(cfg, evaluation, recorder)}")
    return 0


def print_config(args: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(resolved(_load(args)), sort_keys=False), end="")
    return 0


def export(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.generation import export_pairs
    from gmd_ray.generation.export import last_gate
    from gmd_ray.generation.store import store_url

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
    print(f"{count} accepted pairs at threshold {scorer.threshold:g}{bound} written to {args.to} ({args.layout})")
    return 0


def verify(args: argparse.Namespace) -> int:
    from gmd_ray.generation.store import find_store
    from gmd_ray.generation.verify import verify

    found = verify(find_store(args.store), args.deep)
    print(found)
    return 1 if found.findings else 0


def status(args: argparse.Namespace) -> int:
    from gmd_ray.generation.status import read_status
    from gmd_ray.generation.store import find_store

    print(read_status(find_store(args.store)))
    return 0


def gate(args: argparse.Namespace) -> int:
    from gmd_ray.generation.gate import read_gate
    from gmd_ray.generation.store import find_store

    view = read_gate(find_store(args.store), args.threshold, args.fidelity_bound)
    print(view.text())
    if args.html:
        from gmd_ray.evaluation.files import write_bytes
        from gmd_ray.evaluation.gate_page import gate_page

        with writing("--html", args.html, folder=False):
            write_bytes(args.html, gate_page(view).encode())
        print(f"\npage     {args.html}")
    return 0


def sheet(args: argparse.Namespace) -> int:
    from gmd_ray.evaluation.files import write_bytes
    from gmd_ray.evaluation.sheet import make_sheet
    from gmd_ray.generation.store import find_store

    page = make_sheet(find_store(args.store), args.threshold, args.fidelity_bound, args.count)
    base, mark, query = args.store.partition("?")
    to = args.to or f"{base.rstrip('/')}/sheet.html{mark}{query}"
    with writing("--to", to, folder=False):
        write_bytes(to, page.encode())
    print(f"sheet    {to}")
    return 0


def import_images(args: argparse.Namespace) -> int:
    from gmd_ray.generation import import_images
    from gmd_ray.session import ray_session

    cfg = load_config([f"ray.address={args.address}"] if args.address else [])
    with writing("-o", args.output, folder=True), ray_session(cfg):
        found = import_images(args.source, args.output, hq=args.hq, lq=args.lq, key=args.key)
    again = f"; {found.repeated} rows came again" if found.repeated else ""
    print(f"{found.images} images written to {args.output} for each column{again}")
    return 0


def degrade(args: argparse.Namespace) -> int:
    import yaml

    from gmd_ray.errors import ConfigError
    from gmd_ray.images.degradations import make_degradation
    from gmd_ray.images.frozen import Freezing, freeze

    fields = {}
    for field in args.set:
        key, sign, value = field.partition("=")
        if not sign:
            raise ConfigError(f"{field!r}: give --set field=value")
        fields[key] = yaml.safe_load(value)
    how = Freezing(
        degradation=make_degradation(args.preset, fields),
        seed=args.seed,
        crops=int(args.crops) if args.crops and args.crops.isdecimal() else args.crops,
        size=args.size,
        gray=args.gray,
        hq=not args.lq_only,
    )
    with writing("-o", args.output, folder=True):
        written = freeze(args.input, args.output, how, args.limit, args.workers)
    print(f"{written} images written to {args.output}/lq, what was drawn to {args.output}/parameters.jsonl")
    return 0


def restore(args: argparse.Namespace) -> int:
    # The overlap is measured, unless the settings that follow name one.
    tile = [] if args.tile is None else [f"student.tile={args.tile}", "student.tile_overlap=null"]
    cfg = load_config([f"student.path={args.model}", *tile, *args.settings])
    from gmd_ray.restore import restore_folder
    from gmd_ray.session import cluster_address, ray_session

    on_ray = cluster_address(cfg) is not None
    with ray_session(cfg) if on_ray else contextlib.nullcontext():
        done = restore_folder(cfg, args.input, args.output, suffix=args.suffix, ext=args.ext, on_ray=on_ray)
    print(f"{done.count} of {done.count + len(done.failed)} images restored to {args.output}")
    for name, reason in done.failed.items():
        print(f"gmd-ray: {name}: {reason}", file=sys.stderr)
    return 1 if done.failed else 0


def new_student(args: argparse.Namespace) -> int:
    from gmd_ray.students.latent_presets import new_student

    vae = Path(args.vae) if args.vae else None
    with writing("--to", args.to, folder=True):
        count = new_student(args.preset, Path(args.to), vae, args.scale, args.steps, args.seed)
    print(f"{args.preset}: {count / 1e6:,.1f} M untrained parameters in {args.to}")
    return 0


def encode_prompts(args: argparse.Namespace) -> int:
    cfg = _load(args, "encode-prompts")
    from gmd_ray.generation.prompts import prompts_folder
    from gmd_ray.teachers import encode_prompts

    to = args.to or prompts_folder(cfg.out)
    with writing("--to" if args.to else "out:", to, folder=True):
        found = encode_prompts(cfg.teacher, to, args.prompt)
    if found is cfg.teacher:
        print(f"{cfg.teacher.path}: the table beside the weights has every prompt; nothing to encode")
    else:
        print(f"teacher.prompt_embeddings={found.prompt_embeddings}")
    return 0


def list_names(args: argparse.Namespace) -> int:
    from gmd_ray.catalogues import table

    print(table(args.what))
    return 0


def demo(args: argparse.Namespace) -> int:
    from gmd_ray.demo.train_models import train_models

    train_models(args.to, args.only)
    return 0
