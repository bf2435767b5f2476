"""The errors a user can meet. Each message is one line: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class GmdError(Exception):
    """Base of every error that gmd_ray raises on purpose."""


class ConfigError(GmdError, ValueError):
    """A setting that does not exist, has the wrong type, or cannot be met."""


class RefusedError(ConfigError):
    """Several things that stand in the way of a run, all of them found before it begins."""

    def __init__(self, lines: Sequence[str]) -> None:
        """`lines`: one for each, as an error of its own would say it."""
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)

    def __reduce__(self) -> tuple[type[RefusedError], tuple[Sequence[str]]]:
        return RefusedError, (self.lines,)


class DataError(GmdError, ValueError):
    """Input images or pairs that cannot be used."""


class StorageError(DataError, OSError):
    """Storage that fails, or cannot be reached. An OSError too: what reads again after an OSError does so here."""


class ModelError(GmdError, ValueError):
    """A checkpoint or model directory that cannot be loaded or saved as promised."""


class ReplicaLostError(GmdError):
    """A teacher of several ranks lost one of them; the others were ended with it."""


class ResumeMismatchError(GmdError):
    """An existing output was made with other settings than the ones given now."""


class BooksError(GmdError):
    """The rows written do not account for every input exactly once."""


def error_lines(error: GmdError) -> Sequence[str]:
    """Return the lines to print for an error: one, or one for each reason of a `RefusedError`."""
    return error.lines if isinstance(error, RefusedError) else (str(error),)


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error line: the nearest known name, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
