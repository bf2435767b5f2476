"""`gmd-ray VERB [preset=NAME] [key=value ...]`: the same verbs as jobs/, for a person."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from gmd_ray import __version__
from gmd_ray.errors import GmdError, error_lines, nearest
from gmd_ray.interrupts import interruptible

if TYPE_CHECKING:
    from gmd_ray.terminal import Parser

# Imports that take a tenth of a second stand in functions: Ctrl-C may come in them too, and is heard from `main` on.

CHECKED = ("adapt", "generate", "finetune", "pretrain", "evaluate", "plan")
"""Verbs that have a preflight."""
PRINTING = ("ls", "config", "status", "verify", "gate", "plan", "check")
"""Verbs that print when all else is done."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 a run that failed, 2 arguments that cannot be used, 130 after Ctrl-C."""
    return interruptible(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    from gmd_ray.config.secrets import learn
    from gmd_ray.terminal import complain, start_log

    argv = sys.argv[1:] if argv is None else argv
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
        return 2 if isinstance(error, ValueError) else 1
    except BrokenPipeError:  # `gmd-ray ls metrics | head`
        if not _reader_left() or (status is None and args.verb not in PRINTING):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 0


def _reader_left() -> bool:
    """Whether it is our output that nobody reads any more; else another pipe has broken, one of Ray's say."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; settings may stand behind options too."""
    parser, names = _parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in names:
        parser.error(f"no verb {first!r}; {nearest(first, names)}")
    args, rest = parser.parse_known_args(argv)
    settings = [word for word in rest if re.fullmatch(r"[^-=][^=]*=.*", word, re.DOTALL)]
    if len(settings) < len(rest) or (settings and not hasattr(args, "settings")):
        hint = _as_setting(rest, argv) if hasattr(args, "settings") else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if settings:
        args.settings = [*args.settings, *settings]
    return args


def _as_setting(rest: Sequence[str], argv: Sequence[str]) -> str:
    """A hint where one of the words that nobody knows is a setting in the form of an option, `--preset demo`."""
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
    from gmd_ray.verbs import engines as verbs
    from gmd_ray.verbs import folders as folder_verbs

    parser = Parser(prog="gmd-ray", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gmd-ray {__version__}")
    known = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    settings = Parser(add_help=False)
    settings.add_argument("settings", nargs="*", metavar="key=value", help="preset=NAME, config=FILE, then overrides")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str, **kwargs: object) -> Parser:
        sub = known.add_parser(name, help=text, description=text, **kwargs)  # type: ignore[arg-type]
        sub.set_defaults(run=run)
        return sub

    again = Parser(add_help=False)
    again.add_argument("--retry-failed", action="store_true", help="try the rows again that an earlier run left failed")

    text = "the whole run: generate, fine-tune, evaluate, register"
    verb("adapt", verbs.adapt, text, parents=[settings, again])
    check = verb(
        "check", verbs.check, "what stands in the way of a run: told in seconds, nothing begun", parents=[settings]
    )
    check.add_argument("--for", dest="run_of", default="adapt", choices=CHECKED, help="the verb: adapt")
    check.add_argument("--json", action="store_true", help="as a document for programs")
    plan = verb("plan", verbs.plan, "what a run will take: images, forwards, hours, disk, cost", parents=[settings])
    plan.add_argument("--probe", type=_count, metavar="N", help="measure N images through the real stages first")
    verb("generate", verbs.generate, "Stages 0 to 1b: write the pair store", parents=[settings, again])
    verb("finetune", verbs.finetune, "Stage 2 on an existing pair store", parents=[settings])
    verb(
        "pretrain", verbs.pretrain, "train a student on the source pairs, anew or from a checkpoint", parents=[settings]
    )
    verb("evaluate", verbs.evaluate, "measure baseline and adapted student, write table and report", parents=[settings])
    verb("config", verbs.print_config, "print the resolved settings and stop", parents=[settings])
    export = verb("export", verbs.export, "write the accepted pairs for other tools", parents=[settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")
    take = verb(
        "import",
        folder_verbs.import_images,
        "write the images of Parquet, WebDataset or Hugging Face data into folders",
    )
    take.add_argument("--from", required=True, dest="source", metavar="READER:PLACE", help="parquet:, wds: or hf:")
    take.add_argument("-o", "--output", required=True, metavar="DIR", help="gets hq/ and lq/")
    take.add_argument("--hq", metavar="COLUMN", help="the clean images")
    take.add_argument("--lq", metavar="COLUMN", help="the low-quality images")
    take.add_argument(
        "--key", metavar="COLUMN", help="the id; default: a WebDataset's __key__, else a hash of the images"
    )
    take.add_argument("--address", help="Ray cluster to join: auto or host:port; default: a private session")
    degrade = verb("degrade", folder_verbs.degrade, "write degraded images as files: frozen test sets, targets, crops")
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
    restore = verb("restore", folder_verbs.restore, "restore a folder of photos with a student", parents=[settings])
    restore.add_argument("-i", "--input", required=True, metavar="IN", help="photo, or folder or URL, read recursively")
    restore.add_argument("-o", "--output", required=True, metavar="OUT", help="folder or URL of the results")
    restore.add_argument("-m", "--model", required=True, metavar="MODEL", help="the student, as student.path=")
    restore.add_argument("-t", "--tile", type=int, metavar="N", help="side of tiles in input pixels, as student.tile=")
    restore.add_argument("--suffix", default="", help="put behind each file's stem")
    restore.add_argument("--ext", default="auto", help="auto (each photo's own), png, jpg, tif, webp, ...")
    restore.add_argument("--overwrite", action="store_true", help="restore again what an earlier run has finished")
    new = verb("new-student", verbs.new_student, "make an untrained latent diffusion student, for pretraining")
    new.add_argument("preset", help="ldm-1.3b or ldm-tiny")
    new.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    new.add_argument("--vae", metavar="DIR", help="trained AutoencoderKL; without it ldm-tiny gets a random one")
    new.add_argument("--scale", type=int, default=1, help="output side over input side")
    new.add_argument("--steps", type=int, default=4, help="sampling steps it is to be used with")
    new.add_argument("--seed", type=int, default=0)
    encode = verb(
        "encode-prompts", verbs.encode_prompts, "encode the teacher's prompts, on this CPU", parents=[settings]
    )
    encode.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="another prompt; may be repeated")
    encode.add_argument("--to", metavar="DIR", help="destination folder or URL; default <out>/prompts")

    store = Parser(add_help=False)
    store.add_argument("store", metavar="DIR", help="run directory or pair store, local or URL")
    view = Parser(add_help=False)
    view.add_argument("--threshold", type=float, metavar="T", help="of the gate; default: the last run's")
    view.add_argument("--fidelity-bound", type=float, metavar="F", help="second opinion, on the store's fidelity")
    check = verb("verify", verbs.verify, "name torn, foreign and double rows, recount the books", parents=[store])
    check.add_argument("--deep", action="store_true", help="decode every image too")
    verb("status", verbs.status, "how far a run is, at what rate, what failed, who is at work", parents=[store])
    gate = verb(
        "gate", verbs.gate, "how many pairs each threshold would admit; nothing is generated", parents=[store, view]
    )
    gate.add_argument("--html", metavar="FILE", help="write the curve and the histogram as one page")
    text = "a contact sheet of the best, borderline and worst pairs"
    sheet = verb("sheet", verbs.sheet, text, parents=[store, view])
    sheet.add_argument("--count", type=_count, default=6, metavar="N", help="pairs of each kind, 6 by default")
    sheet.add_argument("--to", metavar="FILE", help="the page; default: sheet.html in DIR")

    listing = verb("ls", verbs.list_names, "list what can be named in the settings")
    listing.add_argument("what", choices=["metrics", "presets", "degradations", "sets"])
    demo = verb("demo", verbs.demo, "make the toy world's models")
    demo.add_argument("action", choices=["train-models"])
    demo.add_argument("--to", required=True, metavar="DIR", help="where teacher/, student.safetensors and scorer/ go")
    demo.add_argument("--only", choices=["teacher", "student", "scorer"], help="train one of the three")
    return parser, known.choices


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1")
    return int(text)


def _quiet_libraries() -> None:
    """Notices of libraries that a user can do nothing about; each was seen in a run of this tool."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main())
