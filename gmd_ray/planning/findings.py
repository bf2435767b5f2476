"""What a preflight found: errors that refuse a run, warnings that it should know of, and facts."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from gmd_ray.config.secrets import redact
from gmd_ray.errors import GmdError, RefusedError
from gmd_ray.images.sets.inventory import Listed
from gmd_ray.text import printable

log = logging.getLogger("gmd_ray")

ERROR, WARNING, FACT = "error", "warning", "fact"
NAMED = 3
"""Files that a line names, of as many as there may be."""


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: str
    """error, warning or fact."""
    code: str
    """Of its kind: gpu, sizes, torn, weights, ..."""
    key: str
    """The setting that it is about; empty where there is none."""
    message: str
    """What, where, and how to mend it; one line, fit for a terminal, without credentials."""


@dataclass
class Findings:
    """Everything that was found, in the order of the checks."""

    verb: str
    lines: list[Finding] = field(default_factory=list)
    sets: list[Listed] = field(default_factory=list)
    """The data sets that were listed."""
    seconds: float = 0.0

    def error(self, code: str, key: str, message: str) -> None:
        self._add(ERROR, code, key, message)

    def warn(self, code: str, key: str, message: str) -> None:
        self._add(WARNING, code, key, message)

    def fact(self, code: str, key: str, message: str) -> None:
        self._add(FACT, code, key, message)

    def say(self, level: str, code: str, key: str, message: str) -> None:
        """At a level that the caller chooses."""
        assert level in (ERROR, WARNING, FACT), level
        self._add(level, code, key, message)

    @contextlib.contextmanager
    def errors_of(self, code: str, key: str) -> Iterator[None]:
        """What a check raises that a user can mend becomes an error of its own; the other checks go on."""
        try:
            yield
        except RefusedError as error:
            for line in error.lines:
                self.error(code, key, line)
        except GmdError as error:
            self.error(code, key, str(error))
        except OSError as error:  # storage that fails, which may be another machine's
            self.error(code, key, f"{f'{key}: ' if key else ''}{error or type(error).__name__}")

    def of(self, level: str) -> list[Finding]:
        return [finding for finding in self.lines if finding.level == level]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way; warnings do not."""
        return not self.of(ERROR)

    def refuse(self) -> None:
        """Log facts and warnings, and raise where there are errors.

        Raises:
            RefusedError: every error, a line each.
        """
        for finding in self.of(FACT):
            log.info("%s", finding.message)
        for finding in self.of(WARNING):
            log.warning("%s", finding.message)
        if not self.ok:
            raise RefusedError([finding.message for finding in self.of(ERROR)])

    def text(self) -> str:
        """For a person: errors first."""
        shown = [f"{f.level:<8} {f.message}" for level in (ERROR, WARNING, FACT) for f in self.of(level)]
        counts = self.counts()
        told = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())
        return "\n".join([*shown, f"{self.verb}: {told}; {self.seconds:.1f} s"])

    def as_json(self) -> str:
        """For a program: `ok`, `counts`, `sets` and `findings`."""
        document = {
            "verb": self.verb,
            "ok": self.ok,
            "counts": self.counts(),
            "seconds": round(self.seconds, 2),
            "sets": [{"role": s.role, "count": s.count, "lq": _clean(s.lq), "hq": _clean(s.hq)} for s in self.sets],
            "findings": [asdict(finding) for finding in self.lines],
        }
        return json.dumps(document, indent=2)

    def counts(self) -> dict[str, int]:
        """Level -> findings."""
        found = Counter(finding.level for finding in self.lines)
        return {level: found[level] for level in (ERROR, WARNING, FACT)}

    def _add(self, level: str, code: str, key: str, message: str) -> None:
        finding = Finding(level, code, key, printable(redact(" ".join(message.split()))))
        if finding not in self.lines:
            self.lines.append(finding)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _clean(place: str | None) -> str | None:
    return None if place is None else redact(place)
