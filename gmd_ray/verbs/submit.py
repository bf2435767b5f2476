"""The verb `submit`: another command, as a job on a Ray cluster."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import logging
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmd_ray import __version__
from gmd_ray.config.load import load_config
from gmd_ray.config.places import below
from gmd_ray.config.secrets import holds_secret, redact
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.terminal import say, show
from gmd_ray.verbs.arguments import Verbs, count

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from gmd_ray.config import Config

log = logging.getLogger("gmd_ray")

NOT_AS_A_JOB = ("serve", "study", "submit")
"""Verbs that wait for people at this machine."""
ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Variable that Ray's own `ray job` reads too."""
SPARE_S = 15
"""Seconds between the end of `generation.grace_s` and the kill of a stopped job."""


def register(verbs: Verbs) -> None:
    """Add submit. `cli.parse` puts the words that are not its own options into `words` and `inner`."""
    text = "run another command as a job on a Ray cluster, follow its log, and end with its exit status"
    submit = verbs.add("submit", run_submit, text)
    submit.usage = "gmd-ray submit VERB [key=value ...] [options of VERB] --address http://HOST:8265 [options]"
    submit.allow_abbrev = False
    text = f"the cluster's dashboard, http://HOST:8265; default: {ADDRESS}"
    submit.add_argument("--address", metavar="URL", help=text)
    text = "folder that travels with the job; default: the checkout of gmd_ray, of which gmd_ray/ and jobs/ travel"
    submit.add_argument("--working-dir", metavar="DIR", help=text)
    text = "another file or folder below it that travels too; `.` for all; may be repeated"
    submit.add_argument("--include", action="append", default=[], metavar="PATH", help=text)
    text = "a pattern as in .gitignore that stays behind; may be repeated"
    submit.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help=text)
    text = "a YAML file with further keys of Ray's runtime environment: pip, env_vars, ..."
    submit.add_argument("--runtime-env", metavar="FILE", help=text)
    text = "a variable of the job, or of this shell without =VALUE; may be repeated; the dashboard shows them"
    submit.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help=text)
    text = "seconds that a stopped job gets to end in order; default: generation.grace_s and 15 more"
    submit.add_argument("--stop-time", type=count, metavar="S", help=text)
    submit.add_argument("--name", metavar="ID", help="id of the job; default: Ray draws one")
    submit.add_argument("--no-wait", action="store_true", help="end once the job is submitted")
    text = "stop the job on Ctrl-C; without it Ctrl-C ends the following alone, and the job goes on"
    submit.add_argument("--stop-on-interrupt", action="store_true", help=text)
    submit.add_argument("--follow", metavar="ID", help="follow a job that was submitted before, instead of a VERB")
    submit.set_defaults(words=[], inner=None)


def run_submit(args: argparse.Namespace) -> int:
    address = args.address or os.environ.get(ADDRESS)
    if not address:
        raise ConfigError(f"submit: give --address http://HOST:8265, the cluster's dashboard (or set {ADDRESS})")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: give the cluster's dashboard, http://HOST:8265")
    if args.follow:
        if args.words:
            raise ConfigError(f"submit --follow {args.follow}: leave out {' '.join(args.words)}")
        from gmd_ray.ray_utils.submission import connect

        return _follow(connect(address), address, args.follow, args.stop_on_interrupt)
    if args.inner is None:
        raise ConfigError("submit: give a command to run, such as `gmd-ray submit adapt preset=demo`")
    if args.inner.verb in NOT_AS_A_JOB:
        raise ConfigError(f"submit {args.inner.verb}: runs on this machine only")
    cfg = None
    if hasattr(args.inner, "settings"):  # mistakes are told here, not by a job that has waited for its turn
        cfg = load_config(_known_here(args.inner.settings), check_paths=False)
    runtime_env = _runtime_env(args, cfg)
    command = shlex.join(["python", "-m", "gmd_ray.cli", *args.words])
    _warn_of_secrets(command, runtime_env["env_vars"])

    from gmd_ray.ray_utils.submission import connect, submit

    client = connect(address)
    job = submit(client, address, command, runtime_env, _metadata(args, cfg), args.name)
    say(f"job      {job}")
    say(f"follow   {address.rstrip('/')}/#/jobs/{job}, or gmd-ray submit --follow {job}")
    if cfg is not None and args.inner.verb != "restore" and _out_is_known(args.inner.settings):
        out = _out_of_job(args.inner.settings, cfg)
        where = " of the head node" if out.startswith("~") else ""
        say(f"run      {out}{where}")
        if args.inner.verb in ("adapt", "evaluate"):
            say(f"report   {below(out, 'report.html')}{where}")
    return ExitCode.DONE if args.no_wait else _follow(client, address, job, args.stop_on_interrupt)


def _known_here(settings: list[str]) -> list[str]:
    """Return the settings that this machine can resolve; one of the cluster's variables or files is left to the job."""
    known = []
    for word in settings:
        if why := _unknown(word):
            log.info("%s: not checked here: %s", word.partition("=")[0], why)
        elif "=" in word:
            known.append(word)
    return known


def _unknown(word: str) -> str:
    """Say why only the job can resolve a setting; empty if this machine can."""
    missing = [name for name in re.findall(r"\$\{oc\.env:([^,}]+)\}", word) if name not in os.environ]
    if missing:
        return f"this shell has no {', '.join(missing)}"
    file = os.path.expanduser(word.removeprefix("config=")) if word.startswith("config=") else ""
    return f"{file} is not on this machine" if os.path.isabs(file) and not os.path.exists(file) else ""


def _out_is_known(settings: list[str]) -> bool:
    """Return whether the run directory is that of the settings that this machine can resolve."""
    given = [word for word in settings if word.startswith("out=")]
    return not _unknown(given[-1]) if given else not any(map(_unknown, settings))


def _follow(client: JobSubmissionClient, address: str, job: str, stop_on_interrupt: bool) -> ExitCode:
    from gmd_ray.ray_utils.submission import exit_code, follow, stop

    again = f"gmd-ray submit --follow {job} --address {address}"
    try:
        info = follow(client, job, show)
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            say(f"job {job} goes on; follow it with: {again}")
            return ExitCode.INTERRUPTED
        say(f"stopping job {job}; another Ctrl-C leaves it to end by itself")
        stop(client, job)
        try:
            info = follow(client, job, lambda text: None)
        except KeyboardInterrupt:
            say(f"job {job} is ending; follow it with: {again}")
            return ExitCode.INTERRUPTED
    code = exit_code(info)
    say(f"job {job}: {info.status} (exit status {int(code)}, {code.name.lower()})")
    return code


def _runtime_env(args: argparse.Namespace, cfg: Config | None) -> dict[str, Any]:
    """The job's runtime environment: what travels, the stop time, and what the user adds."""
    from gmd_ray.ray_utils.submission import STOP_WAIT
    from gmd_ray.ray_utils.working_dir import find_checkout, pack
    from gmd_ray.tracking.runs import COMMIT_VARIABLE, checkout_commit

    env = _read_runtime_env(args.runtime_env) if args.runtime_env else {}
    grace = 60 if cfg is None else cfg.generation.grace_s
    variables = {STOP_WAIT: str(args.stop_time or round(grace + SPARE_S)), **(env.get("env_vars") or {})}
    for word in args.env:
        name, sign, value = word.partition("=")
        if not sign and name not in os.environ:
            raise ConfigError(f"--env {name}: this shell has no such variable; give --env {name}=VALUE")
        variables[name] = value if sign else os.environ[name]
    with contextlib.suppress(KeyError, OSError):  # a container without a name for its user
        # The job's journal and MLflow's runs name whoever submits it, and not the user of the head node.
        variables.setdefault("LOGNAME", getpass.getuser())
    env["env_vars"] = variables
    folder = find_checkout(args.working_dir)
    if folder is not None and (folder / "gmd_ray").is_dir() and "working_dir" not in env:
        # .git stays behind. Empty where there is none: the commit of the job's image is not that of the code sent.
        variables.setdefault(COMMIT_VARIABLE, checkout_commit(folder))
    files = [word.removeprefix("config=") for word in args.words if word.startswith("config=")]
    files = [file for file in files if "://" not in file and not os.path.isabs(os.path.expanduser(file))]
    if folder is None:
        if files or args.include:
            raise ConfigError(f"{(files + args.include)[0]}: give --working-dir DIR, the folder to take it from")
    elif "working_dir" not in env:
        packed = pack(folder, [*args.include, *(_below(folder, file) for file in files)], args.exclude)
        env["working_dir"] = packed.path
        env["excludes"] = [*packed.excludes, *env.get("excludes", [])]
        say(f"sends    {packed.size / 1024**2:.1f} MiB of {folder}")
    return env


def _warn_of_secrets(command: str, variables: dict[str, str]) -> None:
    """Warn of secrets that Ray would show and write down."""
    named = [name for name, value in variables.items() if holds_secret(name, value)]
    if redact(command) != command:
        named.append("the command")
    if named:
        log.warning(
            f"Ray's dashboard and logs will show {', '.join(named)}: give secrets to the environment of `ray start` "
            "and write ${oc.env:NAME} in settings"
        )


def _below(folder: Path, file: str) -> str:
    """A file that a setting names, relative to the working directory that it has to lie in."""
    path = Path(os.path.abspath(file))
    if not path.is_relative_to(folder) or Path.cwd() != folder:
        raise ConfigError(
            f"config={file}: the job looks for it in its working directory; submit from {folder}, or give "
            f"--working-dir with the folder that holds it and gmd_ray/"
        )
    return path.relative_to(folder).as_posix()


def _read_runtime_env(file: str) -> dict[str, Any]:
    import yaml

    try:
        env = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(env, dict) or not isinstance(env.get("env_vars") or {}, dict):
        raise ConfigError(f"--runtime-env {file}: not a mapping, with env_vars as a mapping in it")
    env["env_vars"] = {str(name): str(value) for name, value in (env.get("env_vars") or {}).items()}
    return env


def _metadata(args: argparse.Namespace, cfg: Config | None) -> dict[str, str]:
    """Facts about the job, for the dashboard and `ray job list`."""
    found = {"job_name": f"gmd-ray {args.inner.verb}", "verb": args.inner.verb, "gmd_ray": __version__}
    if cfg is not None and _out_is_known(args.inner.settings):
        found["out"] = redact(_out_of_job(args.inner.settings, cfg))
    with contextlib.suppress(KeyError, OSError):  # a container without a name for its user
        found["user"] = getpass.getuser()
    return found


def _out_of_job(settings: list[str], cfg: Config) -> str:
    """The run directory as the job sees it: a relative one lies below ~/gmd_ray of the head node (`resolve_out`)."""
    given = [word.removeprefix("out=") for word in settings if word.startswith("out=")]
    if "://" in cfg.out or (given and os.path.isabs(os.path.expanduser(given[-1]))):
        return cfg.out
    here = Path.cwd()
    inside = Path(cfg.out).is_relative_to(here)
    return f"~/gmd_ray/{Path(cfg.out).relative_to(here)}" if inside else cfg.out
