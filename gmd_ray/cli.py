"""`gmd-ray VERB [preset=NAME] [key=value ...]`: the same verbs as jobs/, for a person."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from gmd_ray import __version__
from gmd_ray.config import Config
from gmd_ray.config.load import load_config, require, resolved
from gmd_ray.errors import GmdError

log = logging.getLogger("gmd_ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 a run that failed, 2 arguments that cannot be used."""
    args = _parser().parse_args(argv)
    _quiet_libraries()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    log.setLevel(logging.INFO)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it, for a team's own module in student.factory
    try:
        return args.run(args)
    except GmdError as error:
        print(f"gmd-ray: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("gmd-ray: stopped; the same command takes up where this one left off", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gmd-ray", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gmd-ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("settings", nargs="*", metavar="key=value", help="preset=NAME, config=FILE, then overrides")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str, **kwargs: object
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, **kwargs)  # type: ignore[arg-type]
        sub.set_defaults(run=run)
        return sub

    verb("adapt", _adapt, "the whole run: generate, fine-tune, evaluate, register", parents=[settings])
    plan = verb("plan", _plan, "what a run will take: images, forwards, hours, disk, cost", parents=[settings])
    plan.add_argument("--probe", type=_count, metavar="N", help="measure N images through the real stages first")
    verb("generate", _generate, "Stages 0 to 1b: write the pair store", parents=[settings])
    verb("finetune", _finetune, "Stage 2 on an existing pair store", parents=[settings])
    verb("pretrain", _pretrain, "train a student on the source pairs, anew or from a checkpoint", parents=[settings])
    verb("evaluate", _evaluate, "measure baseline and adapted student, write table and report", parents=[settings])
    verb("config", _config, "print the resolved settings and stop", parents=[settings])
    export = verb("export", _export, "write the accepted pairs for other tools", parents=[settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")
    take = verb("import", _import, "write the images of Parquet, WebDataset or Hugging Face data into folders")
    take.add_argument("--from", required=True, dest="source", metavar="READER:PLACE", help="parquet:, wds: or hf:")
    take.add_argument("-o", "--output", required=True, metavar="DIR", help="gets hq/ and lq/")
    take.add_argument("--hq", metavar="COLUMN", help="the clean images")
    take.add_argument("--lq", metavar="COLUMN", help="the low-quality images")
    take.add_argument(
        "--key", metavar="COLUMN", help="the id; default: a WebDataset's __key__, else a hash of the images"
    )
    take.add_argument("--address", help="Ray cluster to join: auto or host:port; default: a private session")
    degrade = verb("degrade", _degrade, "write degraded images as files: frozen test sets, targets, crops")
    degrade.add_argument(
        "-i", "--input", required=True, metavar="HQ", help="folder, URL or published set (gmd-ray ls sets)"
    )
    degrade.add_argument("-o", "--output", required=True, metavar="DIR", help="gets lq/, hq/ and parameters.jsonl")
    degrade.add_argument("--preset", required=True, help="one of `gmd-ray ls degradations`")
    degrade.add_argument(
        "--crops", metavar="N", help="N crops in all, or `center` for one an image; default: whole images"
    )
    degrade.add_argument("--size", type=int, help="side of a crop in HQ pixels")
    degrade.add_argument("--seed", type=int, default=0)
    degrade.add_argument("--limit", type=int, help="only the first n images")
    degrade.add_argument("--gray", action="store_true", help="take the images as luma")
    degrade.add_argument("--lq-only", action="store_true", help="do not write the clean side")
    degrade.add_argument("--workers", type=int, help="processes; default: one a CPU")
    degrade.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the preset to replace, as scale=2"
    )
    restore = verb("restore", _restore, "restore a folder of photos with a student", parents=[settings])
    restore.add_argument("-i", "--input", required=True, metavar="IN", help="photo, or folder or URL, read recursively")
    restore.add_argument("-o", "--output", required=True, metavar="OUT", help="folder or URL of the results")
    restore.add_argument("-m", "--model", required=True, metavar="MODEL", help="the student, as student.path=")
    restore.add_argument("-t", "--tile", type=int, metavar="N", help="side of tiles in input pixels, as student.tile=")
    restore.add_argument("--suffix", default="", help="put behind each file's stem")
    restore.add_argument("--ext", default="auto", help="auto (each photo's own), png, jpg, tif, webp, ...")
    new = verb("new-student", _new_student, "make an untrained latent diffusion student, for pretraining")
    new.add_argument("preset", help="ldm-1.3b or ldm-tiny")
    new.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    new.add_argument("--vae", metavar="DIR", help="trained AutoencoderKL; without it ldm-tiny gets a random one")
    new.add_argument("--scale", type=int, default=1, help="output side over input side")
    new.add_argument("--steps", type=int, default=4, help="sampling steps it is to be used with")
    new.add_argument("--seed", type=int, default=0)
    encode = verb("encode-prompts", _encode_prompts, "encode the teacher's prompts, on this CPU", parents=[settings])
    encode.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="another prompt; may be repeated")
    encode.add_argument("--to", metavar="DIR", help="destination folder or URL; default <out>/prompts")

    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("store", metavar="DIR", help="run directory or pair store, local or URL")
    view = argparse.ArgumentParser(add_help=False)
    view.add_argument("--threshold", type=float, metavar="T", help="of the gate; default: the last run's")
    view.add_argument("--fidelity-bound", type=float, metavar="F", help="second opinion, on the store's fidelity")
    check = verb("verify", _verify, "name torn, foreign and double rows, recount the books", parents=[store])
    check.add_argument("--deep", action="store_true", help="decode every image too")
    verb("status", _status, "how far a run is, at what rate, what failed, who is at work", parents=[store])
    gate = verb("gate", _gate, "how many pairs each threshold would admit; nothing is generated", parents=[store, view])
    gate.add_argument("--html", metavar="FILE", help="write the curve and the histogram as one page")
    sheet = verb("sheet", _sheet, "a contact sheet of the best, borderline and worst pairs", parents=[store, view])
    sheet.add_argument("--count", type=_count, default=6, metavar="N", help="pairs of each kind, 6 by default")
    sheet.add_argument("--to", metavar="FILE", help="the page; default: sheet.html in DIR")

    listing = verb("ls", _list, "list what can be named in the settings")
    listing.add_argument("what", choices=["metrics", "presets", "degradations", "sets"])
    demo = verb("demo", _demo, "make the toy world's models")
    demo.add_argument("action", choices=["train-models"])
    demo.add_argument("--to", required=True, metavar="DIR", help="where teacher/, student.safetensors and scorer/ go")
    demo.add_argument("--only", choices=["teacher", "student", "scorer"], help="train one of the three")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1")
    return int(text)


def _load(args: argparse.Namespace) -> Config:
    from gmd_ray.quality import known_metrics

    cfg = load_config(args.settings, known_metrics=known_metrics)
    from gmd_ray.images.inventory import check_sets

    if cfg.source.degradation is not None:
        from gmd_ray.images.degradations import make_degradation

        make_degradation(cfg.source.degradation, cfg.source.degradation_args)
    check_sets(cfg)
    return cfg


def _adapt(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import adapt

    result = adapt(cfg)
    print(result.table)
    for reason in result.reasons:
        print(reason)
    print(f"student  {result.student}")
    print(f"report   {result.report}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.generation.plan import make_plan, survey
    from gmd_ray.generation.probe import run_probe
    from gmd_ray.generation.spent import NAME
    from gmd_ray.generation.store import PairStore, store_url
    from gmd_ray.images.inventory import inventory
    from gmd_ray.session import ray_session

    require(cfg, "plan")
    if args.probe:
        require(cfg, "generate")
    settle(cfg)
    listed = inventory(cfg)
    jobs, unreadable = survey(cfg)
    probe = None
    if args.probe:
        with ray_session(cfg):
            probe = run_probe(cfg, jobs, args.probe)
    plan = make_plan(cfg, jobs, unreadable, probe)
    PairStore(store_url(cfg.out)).write(NAME, plan.as_json())
    print(*listed, "", plan.table(), sep="\n")
    return 0


def _generate(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.generation import generate
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run

    require(cfg, "generate")
    settle(cfg)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("generate") as recorder:
        print(generate(cfg, recorder))
    return 0


def _finetune(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetune

    require(cfg, "finetune")
    settle(cfg)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                print(finetune(cfg, name, recorder).path)
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import pretrain

    require(cfg, "pretrain")
    settle(cfg)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("pretrain") as recorder:
        print(pretrain(cfg, recorder).path)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.evaluation import evaluate, write_report
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetuned_path

    require(cfg, "evaluate")
    settle(cfg)
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


def _config(args: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(resolved(_load(args)), sort_keys=False), end="")
    return 0


def _export(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.generation import export_pairs

    store = f"{cfg.out}/pairs"
    scorer = cfg.scorer
    count = export_pairs(
        store, args.to, scorer.threshold, args.layout, fidelity=scorer.fidelity, bound=scorer.fidelity_bound
    )
    bound = "" if scorer.fidelity_bound is None else f" and {scorer.fidelity} bound {scorer.fidelity_bound:g}"
    print(f"{count} accepted pairs at threshold {scorer.threshold:g}{bound} written to {args.to} ({args.layout})")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from gmd_ray.generation.store import find_store
    from gmd_ray.generation.verify import verify

    found = verify(find_store(args.store), args.deep)
    print(found)
    return 1 if found.findings else 0


def _status(args: argparse.Namespace) -> int:
    from gmd_ray.generation.status import read_status
    from gmd_ray.generation.store import find_store

    print(read_status(find_store(args.store)))
    return 0


def _gate(args: argparse.Namespace) -> int:
    from gmd_ray.generation.gate import read_gate
    from gmd_ray.generation.store import find_store

    view = read_gate(find_store(args.store), args.threshold, args.fidelity_bound)
    print(view.text())
    if args.html:
        from gmd_ray.evaluation.files import write_bytes
        from gmd_ray.evaluation.gate_page import gate_page

        write_bytes(args.html, gate_page(view).encode())
        print(f"\npage     {args.html}")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from gmd_ray.evaluation.files import write_bytes
    from gmd_ray.evaluation.sheet import make_sheet
    from gmd_ray.generation.store import find_store

    page = make_sheet(find_store(args.store), args.threshold, args.fidelity_bound, args.count)
    to = args.to or f"{args.store.rstrip('/')}/sheet.html"
    write_bytes(to, page.encode())
    print(f"sheet    {to}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from gmd_ray.generation import import_images
    from gmd_ray.session import ray_session

    with ray_session(load_config([f"ray.address={args.address}"] if args.address else [])):
        found = import_images(args.source, args.output, hq=args.hq, lq=args.lq, key=args.key)
    again = f"; {found.repeated} rows came again" if found.repeated else ""
    print(f"{found.images} images written to {args.output} for each column{again}")
    return 0


def _degrade(args: argparse.Namespace) -> int:
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
    written = freeze(args.input, args.output, how, args.limit, args.workers)
    print(f"{written} images written to {args.output}/lq, what was drawn to {args.output}/parameters.jsonl")
    return 0


def _restore(args: argparse.Namespace) -> int:
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


def _new_student(args: argparse.Namespace) -> int:
    from gmd_ray.students.latent_presets import new_student

    vae = Path(args.vae) if args.vae else None
    count = new_student(args.preset, Path(args.to), vae, args.scale, args.steps, args.seed)
    print(f"{args.preset}: {count / 1e6:,.1f} M untrained parameters in {args.to}")
    return 0


def _encode_prompts(args: argparse.Namespace) -> int:
    cfg = _load(args)
    require(cfg, "encode-prompts")
    from gmd_ray.generation.prompts import prompts_folder
    from gmd_ray.teachers import encode_prompts

    found = encode_prompts(cfg.teacher, args.to or prompts_folder(cfg.out), args.prompt)
    if found is cfg.teacher:
        print(f"{cfg.teacher.path}: the table beside the weights has every prompt; nothing to encode")
    else:
        print(f"teacher.prompt_embeddings={found.prompt_embeddings}")
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.what == "metrics":
        from gmd_ray.quality import known_metrics

        names = list(known_metrics())
    elif args.what == "degradations":
        from gmd_ray.images.degradations import PRESETS

        names = sorted(PRESETS)
    elif args.what == "sets":
        from gmd_ray.images.layouts import SETS

        names = [f"{name}@ROOT  {published.describe()}" for name, published in SETS.items()]
    else:
        from gmd_ray.config.load import preset_names

        names = list(preset_names())
    print("\n".join(names))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from gmd_ray.demo.train_models import train_models

    train_models(args.to, args.only)
    return 0


def _quiet_libraries() -> None:
    """Notices of libraries that a user can do nothing about; each was seen in a run of this tool."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main())
