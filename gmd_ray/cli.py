"""Command-line entry point."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gmd_ray import __version__
from gmd_ray.errors import GmdError, error_lines, nearest
from gmd_ray.interrupts import interruptible

if TYPE_CHECKING:
    from gmd_ray.terminal import Parser

# Imports that take a tenth of a second stand inside functions, where `main` already handles Ctrl-C.

DESCRIPTION = "Adapt an image restorer to real photos: gmd-ray VERB [preset=NAME] [key=value ...]"
PRINTING = ("ls", "fetch", "config", "status", "verify", "gate", "plan", "check", "history", "compare", "trace")
"""Verbs whose printing is the last thing they do, so that a closed pipe costs nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        the exit status, a value of `errors.ExitCode`.
    """
    return interruptible(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    from gmd_ray.config.secrets import learn, learn_environment
    from gmd_ray.terminal import complain, start_log

    argv = sys.argv[1:] if argv is None else argv
    learn_environment()
    for word in argv:
        learn(word)
    args = parse(argv)
    _quiet_libraries()
    start_log()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it, for a team's own module in student.factory
    status: int | None = None
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except GmdError as error:
        for line in error_lines(error):
            complain(line)
        return error.exit_code
    except BrokenPipeError:  # `gmd-ray ls metrics | head`
        if not _reader_left() or (status is None and args.verb not in PRINTING):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 0


def _reader_left() -> bool:
    """Tell a closed standard output from another broken pipe, one of Ray's for example."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; settings may also stand after options."""
    parser, names = _parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in names:
        parser.error(f"no verb {first!r}; {nearest(first, names)}")
    args, rest = parser.parse_known_args(argv)
    if args.verb == "submit":
        args.words, args.inner = rest, parse(rest) if rest else None
        return args
    settings = [word for word in rest if re.fullmatch(r"[^-=][^=]*=.*", word, re.DOTALL)]
    if len(settings) < len(rest) or (settings and not hasattr(args, "settings")):
        hint = _as_setting(rest, argv) if hasattr(args, "settings") else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if settings:
        args.settings = [*args.settings, *settings]
    return args


def _as_setting(rest: Sequence[str], argv: Sequence[str]) -> str:
    """A hint for a setting that is given in the form of an option, such as `--preset demo`; empty without one."""
    from gmd_ray.config.load import setting_like

    for word in rest:
        option, sign, value = word.partition("=")
        keys = setting_like(option.lstrip("-")) if option.startswith("-") else []
        if keys:
            after = argv[argv.index(word) + 1 :][:1] if word in argv else []
            value = value if sign else after[0] if after and "=" not in after[0] else "..."
            return f"; settings are given without dashes: {' or '.join(f'{key}={value}' for key in keys)}"
    return ""


def _parser() -> tuple[Parser, Collection[str]]:
    """The parser, and the names of the verbs."""
    from gmd_ray.terminal import Parser
    from gmd_ray.verbs import ablate, catalogues, folders, gate, models, registry, runs, stores, submit
    from gmd_ray.verbs.arguments import Verbs
    from gmd_ray.verbs.pages import preview, serve, study

    parser = Parser(prog="gmd-ray", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"gmd-ray {__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs = Verbs(subparsers)
    for module in (runs, submit, preview, ablate, stores, gate, serve, study, folders, models, registry, catalogues):
        module.register(verbs)
    return parser, subparsers.choices


def _quiet_libraries() -> None:
    """Silence notices of libraries that a user can do nothing about."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main())
