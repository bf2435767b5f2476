"""The verbs that go from one folder of images to another, without a run: import, degrade, restore."""

from __future__ import annotations

import argparse
import contextlib

from gmd_ray.config.load import load_config
from gmd_ray.config.places import folder_or_set
from gmd_ray.destinations import writing
from gmd_ray.terminal import complain, say


def import_images(args: argparse.Namespace) -> int:
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


def degrade(args: argparse.Namespace) -> int:
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
    return 1 if done.failed else 0


def restore_settings(args: argparse.Namespace) -> list[str]:
    """The settings that the options of `restore` stand for, and those given beside them."""
    # The overlap is measured, unless the settings that follow name one.
    tile = [] if args.tile is None else [f"student.tile={args.tile}", "student.tile_overlap=null"]
    return [f"student.path={args.model}", *tile, *args.settings]


def restore(args: argparse.Namespace) -> int:
    cfg = load_config(restore_settings(args))
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
    return 1 if done.failed else 0
