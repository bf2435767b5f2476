"""The errors a user can meet. Each message is one line: what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GmdError(Exception):
    """Base of every error that gmd_ray raises on purpose."""


class ConfigError(GmdError, ValueError):
    """A setting that does not exist, has the wrong type, or cannot be met."""


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


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error line: the nearest known name, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
