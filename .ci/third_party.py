"""Writes the table of docs/third_party.md: every package of requirements.lock with its version and licence.

`make licences` runs it. A licence is the one that the installed package declares; packages that declare none, or are
not for this system, stand in `KNOWN`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, PAGE = ROOT / "requirements.lock", ROOT / "docs" / "third_party.md"
BEGIN, END = "<!-- written by make licences -->\n", "<!-- end -->\n"

KNOWN = {
    # They declare nothing that names it: from their licence files and their project's pages.
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "huey": "MIT",
    "nvidia-cusparselt-cu13": "LicenseRef-NVIDIA-Proprietary",
    "openai-clip": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "skops": "MIT",
    # For other systems only.
    "colorama": "BSD-3-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pywin32": "PSF-2.0",
    "tzdata": "Apache-2.0",
    "waitress": "ZPL-2.1",
}
NAMES = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause or apache-2.0": "BSD-3-Clause OR Apache-2.0",
    "bsd": "BSD",
    "bsd license": "BSD",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""What packages write -> the SPDX identifier; `BSD` where they do not say which of the BSD licences."""
_IDENTIFIER = re.compile(r"[A-Za-z0-9.+-]*[0-9-][A-Za-z0-9.+-]*|MIT|ISC|Zlib")
_LOCKED = re.compile(r"([a-z0-9-]+)==(\S+?)(?: ; .+)?")


def locked() -> dict[str, list[str]]:
    """Package -> its versions in the lock; several where they differ between Pythons."""
    found: dict[str, list[str]] = {}
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        entry = _LOCKED.fullmatch(line.strip())
        if entry is None:
            raise SystemExit(f"{LOCK.name}: not a locked package: {line}")
        found.setdefault(entry[1], []).append(entry[2])
    return found


def licence(package: str) -> str | None:
    """The licence of an installed package; None if it is neither declared nor known."""
    if package in KNOWN:
        return KNOWN[package]
    try:
        facts = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    for text in filter(None, _declared(facts)):
        if all(_IDENTIFIER.fullmatch(word) for word in re.split(r" (?:AND|OR|WITH) |[()]", text) if word):
            return text
        if text.lower() in NAMES:
            return NAMES[text.lower()]
    return None


def table() -> str:
    """The table of all packages, in Markdown.

    Raises:
        SystemExit: a package without a licence.
    """
    lines, unknown = ["| package | version | licence |", "| --- | --- | --- |"], []
    for package, versions in sorted(locked().items()):
        found = licence(package)
        if found is None:
            unknown.append(package)
            continue
        lines.append(f"| {package} | {', '.join(versions)} | {found} |")
    if unknown:
        raise SystemExit(f"no licence found for {', '.join(unknown)}: run make install, or extend KNOWN in {__file__}")
    return "\n".join(lines) + "\n"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _declared(facts: metadata.PackageMetadata) -> Iterator[str]:
    """Whatever a package says of its licence, the more exact first."""
    for name in ("License-Expression", "License"):
        yield (facts.get(name) or "").strip()
    for classifier in facts.get_all("Classifier") or ():
        if classifier.startswith("License ::"):
            yield classifier.rpartition(" :: ")[2]


if __name__ == "__main__":
    sys.exit(main())
