"""Arguments that several verbs share, and the table that each verb enters itself into."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gmd_ray.terminal import Parser

if TYPE_CHECKING:
    Run = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[Parser]


class Verbs:
    """The verbs of the command line. A module of verbs has a `register(verbs)` that adds its own with their options."""

    def __init__(self, subparsers: Subparsers) -> None:
        self._subparsers = subparsers
        self.settings = Parser(add_help=False)
        """Settings as `key=value`."""
        self.settings.add_argument(
            "settings", nargs="*", metavar="key=value", help="preset=NAME, config=FILE, then overrides"
        )
        self.retry = Parser(add_help=False)
        """Another try for failed rows."""
        self.retry.add_argument(
            "--retry-failed", action="store_true", help="try the rows again that an earlier run left failed"
        )
        self.store = Parser(add_help=False)
        """The pair store to look into."""
        self.store.add_argument("store", metavar="DIR", help="run directory or pair store, local or URL")
        self.json = Parser(add_help=False)
        """Output for programs."""
        self.json.add_argument("--json", action="store_true", help="print a JSON document for programs")
        self.thresholds = Parser(add_help=False)
        """Other thresholds than those of the last run."""
        self.thresholds.add_argument(
            "--threshold", type=float, metavar="T", help="score threshold; default: the last run's"
        )
        self.thresholds.add_argument(
            "--fidelity-bound", type=float, metavar="F", help="second opinion, on the store's fidelity"
        )

    def add(self, name: str, run: Run, text: str, parents: Sequence[Parser] = ()) -> Parser:
        """Add a verb, and return its parser for further options.

        Args:
            run: is called with the arguments, and returns the exit status.
            text: one line for `--help`.
            parents: groups of shared arguments.
        """
        sub = self._subparsers.add_parser(name, help=text, description=text, parents=list(parents))
        sub.set_defaults(run=run)
        return sub


def count(text: str) -> int:
    """A number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1")
    return int(text)
