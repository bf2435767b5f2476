"""Verbs that make one folder of images from another, without a run: import, degrade, restore."""

from __future__ import annotations

import argparse
import contextlib

from gmd_ray.config.load import load_config
from gmd_ray.config.places import folder_or_set
from gmd_ray.destinations import writing
from gmd_ray.errors import ExitCode
from gmd_ray.terminal import complain, say
from gmd_ray.verbs.arguments import Verbs


def register(verbs: Verbs) -> None:
    """Add import, degrade and restore."""
    text = "write the images of Parquet, WebDataset or Hugging Face data into folders"
    take = verbs.add("import", run_import, text)
    take.add_argument("--from", required=True, dest="source", metavar="READER:PLACE", help="parquet:, wds: or hf:")
    take.add_argument("-o", "--output", required=True, metavar="DIR", help="gets hq/ and lq/")
    take.add_argument("--hq", metavar="COLUMN", help="the clean images")
    take.add_argument("--lq", metavar="COLUMN", help="the low-quality images")
    text = "the id; default: a WebDataset's __key__, else a hash of the images"
    take.add_argument("--key", metavar="COLUMN", help=text)
    take.add_argument("--address", help="Ray cluster to join: auto or host:port; default: a private session")
    text = "write degraded images as files: frozen test sets, targets, crops"
    degrade = verbs.add("degrade", run_degrade, text)
    text = "folder, URL or published set (gmd-ray ls sets)"
    degrade.add_argument("-i", "--input", required=True, metavar="HQ", help=text)
    degrade.add_argument("-o", "--output", required=True, metavar="DIR", help="gets lq/, hq/ and parameters.jsonl")
    degrade.add_argument("--preset", required=True, help="one of `gmd-ray ls degradations`")
    text = "N crops in all, or `center` for one from each image; default: whole images"
    degrade.add_argument("--crops", metavar="N", help=text)
    degrade.add_argument("--size", type=int, help="side of a crop in HQ pixels")
    degrade.add_argument("--seed", type=int, default=0)
    degrade.add_argument("--limit", type=int, help="only the first n images")
    degrade.add_argument("--gray", action="store_true", help="take the images as luma")
    degrade.add_argument("--lq-only", action="store_true", help="do not write the clean side")
    degrade.add_argument("--workers", type=int, help="processes; default: one for each CPU")
    text = "a field of the preset to replace, as scale=2"
    degrade.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=text)
    restore = verbs.add("restore", run_restore, "restore a folder of photos with a student", [verbs.settings])
    restore.add_argument("-i", "--input", required=True, metavar="IN", help="photo, or folder or URL, read recursively")
    restore.add_argument("-o", "--output", required=True, metavar="OUT", help="folder or URL of the results")
    restore.add_argument(
        "-m", "--model", required=True, metavar="MODEL", help="the student, as student.path=, or models:/NAME@champion"
    )
    restore.add_argument("-t", "--tile", type=int, metavar="N", help="side of tiles in input pixels, as student.tile=")
    restore.add_argument("--suffix", default="", help="put behind the stem of each file name")
    restore.add_argument("--ext", default="auto", help="auto (each photo's own), png, jpg, tif, webp, ...")
    restore.add_argument("--overwrite", action="store_true", help="restore again what an earlier run has finished")


def run_import(args: argparse.Namespace) -> int:
    from gmd_ray.folders.import_rows import check_import

    cfg = load_config([f"ray.address={args.address}"] if args.address else [])
    with writing("-o", args.output, folder=True):
        check_import(args.source, args.output, args.hq, args.lq, args.key)  # before Ray starts
        from gmd_ray.folders.import_images import import_images
        from gmd_ray.ray_utils.session import ray_session

        with ray_session(cfg):
            found = import_images(args.source, args.output, hq=args.hq, lq=args.lq, key=args.key)
    again = f"; {found.repeated} rows came again" if found.repeated else ""
    anew = f"; {found.replaced} took the place of files with other bytes" if found.replaced else ""
    say(f"{found.images} images written to {args.output} for each column{again}{anew}")
    return 0


def run_degrade(args: argparse.Namespace) -> int:
    from gmd_ray.config.values import parse_any
    from gmd_ray.errors import ConfigError
    from gmd_ray.images.degradation.degradations import make_degradation
    from gmd_ray.images.sets.frozen import FrozenSetSpec, write_frozen_set

    fields = {}
    for field in args.set:
        key, sign, value = field.partition("=")
        if not sign:
            raise ConfigError(f"{field!r}: give --set field=value")
        fields[key] = parse_any(value, f"--set {field}")
    how = FrozenSetSpec(
        degradation=make_degradation(args.preset, fields),
        seed=args.seed,
        crops=int(args.crops) if args.crops and args.crops.isdecimal() else args.crops,
        size=args.size,
        gray=args.gray,
        hq=not args.lq_only,
    )
    with writing("-o", args.output, folder=True):
        done = write_frozen_set(folder_or_set(args.input), args.output, how, args.limit, args.workers)
    anew = f", of {len(done.remade)} changed inputs among them" if done.remade else ""
    say(f"{done.written} images written to {args.output}/lq{anew}, what was drawn to {args.output}/parameters.jsonl")
    for name, reason in done.failed.items():
        complain(f"{name}: {reason}")
    return ExitCode.DATA if done.failed else ExitCode.DONE


def restore_settings(args: argparse.Namespace) -> list[str]:
    """The settings that the options of `restore` stand for, and those given beside them."""
    # The overlap is measured, unless the settings that follow name one.
    tile = [] if args.tile is None else [f"student.tile={args.tile}", "student.tile_overlap=null"]
    return [f"student.path={args.model}", *tile, *args.settings]


def _registered(args: argparse.Namespace) -> list[str]:
    """The settings of a student of the model registry, which is copied to this machine."""
    from gmd_ray.tracking import fetch_student

    path, settings = fetch_student(load_config(args.settings, check_paths=False), args.model)
    return [f"student.path={path}", *(f"student.{key}={_yaml(value)}" for key, value in settings.items())]


def _yaml(value: object) -> str:
    return "null" if value is None else str(value)


def run_restore(args: argparse.Namespace) -> int:
    given = restore_settings(args)
    if args.model.startswith("models:/"):
        given = [*_registered(args), *given[1:]]
    cfg = load_config(given)
    from gmd_ray.folders.restore import restore_folder
    from gmd_ray.ray_utils.session import cluster_address, ray_session

    on_ray = cluster_address(cfg) is not None
    how = {"suffix": args.suffix, "ext": args.ext, "overwrite": args.overwrite}
    with ray_session(cfg) if on_ray else contextlib.nullcontext():
        done = restore_folder(cfg, folder_or_set(args.input), args.output, **how, on_ray=on_ray)
    earlier = f", {done.skipped} of them by an earlier run" if done.skipped else ""
    say(f"{done.count} of {done.count + len(done.failed)} images restored to {args.output}{earlier}")
    for name, reason in done.failed.items():
        complain(f"{name}: {reason}")
    return ExitCode.DATA if done.failed else ExitCode.DONE
