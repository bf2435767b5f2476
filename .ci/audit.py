"""Asks a vulnerability service about every package of requirements.lock, with pip-audit.

`make audit` runs it. Exit status: 0 if nothing is known against them, 1 if something is, 0 after one line where the
service cannot be asked, as on a machine without internet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
FIRST = 3
"""Packages that are asked about alone: if the service knows none of them, the others are not asked about."""
TIME_S = 300


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--osv", metavar="URL", help="an OSV service (https://api.osv.dev/v1/query); default: PyPI's")
    args = parser.parse_args(words)
    lines = args.lock.read_text(encoding="utf-8").splitlines()
    for some in (lines[:FIRST], lines):
        found = ask(some, args.osv)
        if isinstance(found, str):
            print(f"audit: not done, since the vulnerability service cannot be asked here ({found})")
            return 0
    return tell(found)


def ask(lines: list[str], osv: str | None) -> list[dict[str, Any]] | str:
    """What the service knows of some lines of a lock: pip-audit's entries, or the reason why it cannot be asked."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        service = ["-s", "osv", "--osv-url", osv] if osv else ["-s", "pypi"]
        command = [sys.executable, "-m", "pip_audit", "-r", file.name, "--no-deps", "--disable-pip", "-f", "json"]
        try:
            done = subprocess.run(
                [*command, *service, "--progress-spinner", "off", "--timeout", "5"],
                capture_output=True, text=True, timeout=TIME_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer within {TIME_S} s"
    try:
        entries: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
    if entries and all("skip_reason" in entry for entry in entries):
        return str(entries[0]["skip_reason"])
    return entries


def tell(entries: list[dict[str, Any]]) -> int:
    """Print a line for each known vulnerability and each package that the service does not know."""
    bad = [entry for entry in entries if entry.get("vulns")]
    for entry in bad:
        for found in entry["vulns"]:
            names = ", ".join([found["id"], *found.get("aliases", ())])
            mended = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"audit: {entry['name']} {entry['version']}: {names}; mended in {mended}")
    unknown = [entry["name"] for entry in entries if "skip_reason" in entry]
    if unknown:
        print(f"audit: not known to the service: {', '.join(unknown)}")
    print(f"audit: {len(entries) - len(unknown)} packages, {len(bad)} with known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
