"""The errors a user can meet. Each message is one line: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses of every command, for scripts and schedulers."""

    DONE = 0
    FAILED = 1
    """Any other failure: a lost worker, a registry that is away, a bug."""
    SETTINGS = 2
    """The command line, a setting or a model that it names cannot be used. Nothing has been started."""
    DATA = 3
    """Images, pairs or a store are missing, damaged or inconsistent; results of all others are kept."""
    REFUSED = 4
    """The command did its work, and a promotion gate or the calibration of the score refuses the result."""
    INTERRUPTED = 5
    """Ended by a signal or a lost cluster; the same command takes up where this one left off."""


class GmdError(Exception):
    """Base of every error that gmd_ray raises on purpose. Its text has no secrets.

    Messages repeat URLs, and an error of a worker is in Ray's own logs before any code of ours sees it.
    """

    exit_code: ExitCode = ExitCode.FAILED
    """Status of a command that ends with this error."""

    def __str__(self) -> str:
        from gmd_ray.config.secrets import redact  # here: the package `config` imports this module

        return redact(super().__str__())


class InterruptedRunError(GmdError):
    """A run that the cluster broke off, and that the same command resumes."""

    exit_code = ExitCode.INTERRUPTED


class ConfigError(GmdError, ValueError):
    """A setting that does not exist, has the wrong type, or cannot be met."""

    exit_code = ExitCode.SETTINGS


class RefusedError(ConfigError):
    """Several things that stand in the way of a run, all of them found before it begins."""

    def __init__(self, lines: Sequence[str], exit_code: ExitCode = ExitCode.SETTINGS) -> None:
        """Keep the reasons.

        Args:
            lines: one for each, as an error of its own would say it.
            exit_code: DATA if all of them are about images.
        """
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[RefusedError], tuple[Sequence[str], ExitCode]]:
        return RefusedError, (self.lines, self.exit_code)


class DataError(GmdError, ValueError):
    """Input images or pairs that cannot be used."""

    exit_code = ExitCode.DATA


class StorageError(DataError, OSError):
    """Storage that fails, or cannot be reached. An OSError too: what reads again after an OSError does so here."""


class ModelError(GmdError, ValueError):
    """A checkpoint or model directory that cannot be loaded or saved as promised."""

    exit_code = ExitCode.SETTINGS


class ReplicaLostError(GmdError):
    """A teacher of several ranks lost one of them; the others were ended with it."""


class ResumeMismatchError(GmdError):
    """An existing output was made with other settings than the ones given now."""

    exit_code = ExitCode.SETTINGS


class BooksError(GmdError):
    """The rows written do not account for every input exactly once."""

    exit_code = ExitCode.DATA


def error_lines(error: GmdError) -> Sequence[str]:
    """Return the lines to print for an error: one, or one for each reason of a `RefusedError`."""
    return error.lines if isinstance(error, RefusedError) else (str(error),)


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error line: the nearest known name, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
