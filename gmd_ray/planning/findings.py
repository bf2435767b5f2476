"""Findings of a preflight: errors that refuse a run, warnings, and facts."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from gmd_ray.config.secrets import redact
from gmd_ray.errors import ExitCode, GmdError, RefusedError
from gmd_ray.images.sets.listed import Listed
from gmd_ray.text import printable

log = logging.getLogger("gmd_ray")

ERROR, WARNING, FACT = "error", "warning", "fact"
DATA_CODES = ("data", "sizes", "torn")
"""Kinds of checks that look at images."""
NAMED = 3
"""The most files that one line names."""


@dataclass(frozen=True)
class Finding:
    """One line of a preflight."""

    level: str
    """`error`, `warning` or `fact`."""
    code: str
    """The kind of check: gpu, sizes, torn, weights, ..."""
    key: str
    """The setting to change; empty if there is none."""
    message: str
    """One line that says what is wrong, where, and how to mend it; free of control characters and credentials."""


@dataclass
class Findings:
    """All findings of a preflight, in the order of the checks."""

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
        """Add a finding at a level that the caller chooses."""
        assert level in (ERROR, WARNING, FACT), level
        self._add(level, code, key, message)

    @contextlib.contextmanager
    def errors_of(self, code: str, key: str) -> Iterator[None]:
        """Turn an exception of a check that a user can mend into an error, so that the other checks go on."""
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
        """True if there is no error; warnings do not count."""
        return not self.of(ERROR)

    @property
    def exit_code(self) -> ExitCode:
        """DONE without errors, DATA if all of them are about images, else SETTINGS."""
        if self.ok:
            return ExitCode.DONE
        return ExitCode.DATA if all(f.code in DATA_CODES for f in self.of(ERROR)) else ExitCode.SETTINGS

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
            raise RefusedError([finding.message for finding in self.of(ERROR)], self.exit_code)

    def text(self) -> str:
        """The findings as lines for a person, errors first."""
        shown = [f"{f.level:<8} {f.message}" for level in (ERROR, WARNING, FACT) for f in self.of(level)]
        counts = self.counts()
        told = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items())
        return "\n".join([*shown, f"{self.verb}: {told}; {self.seconds:.1f} s"])

    def as_json(self) -> str:
        """The findings as JSON for a program: `ok`, `counts`, `sets` and `findings`."""
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
        """Level -> number of findings."""
        found = Counter(finding.level for finding in self.lines)
        return {level: found[level] for level in (ERROR, WARNING, FACT)}

    def _add(self, level: str, code: str, key: str, message: str) -> None:
        finding = Finding(level, code, key, printable(redact(" ".join(message.split()))))
        if finding not in self.lines:
            self.lines.append(finding)


def _clean(place: str | None) -> str | None:
    return None if place is None else redact(place)
