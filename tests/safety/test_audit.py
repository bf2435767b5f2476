"""`make audit` with the real pip-audit and a service of known vulnerabilities on the loopback address."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from tests import PATIENCE_S
from tests.safety.scripts import ROOT, script
from tests.servers.running import free_port

pytestmark = pytest.mark.slow

KNOWN = {
    "id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "modified": "2026-01-01T00:00:00Z", "summary": "a hole",
    "affected": [{"package": {"name": "jinja2", "ecosystem": "PyPI"}, "versions": ["3.1.0"],
                  "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.1.6"}]}]}],
}  # fmt: skip


class Vulnerabilities(BaseHTTPRequestHandler):
    """Answers as OSV does."""

    asked: list[tuple[str, str]] = []

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = query["package"]["name"], query["version"]
        Vulnerabilities.asked.append(asked)
        body = json.dumps({"vulns": [KNOWN]} if asked == ("jinja2", "3.1.0") else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    Vulnerabilities.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Vulnerabilities) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    pytest.importorskip("pip_audit", reason="pip-audit is not installed (dev extra)")
    return script("audit")


LINES = ["attrs==26.1.0", "idna==3.11", "numpy==2.4.6", "jinja2==3.1.0", "waitress==3.0.2 ; sys_platform == 'win32'"]


def test_a_known_vulnerability_is_told(
    audit: ModuleType, service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("\n".join(LINES))
    assert audit.main(["--lock", str(lock), "--osv", service]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == "audit: jinja2 3.1.0: PYSEC-2026-1, CVE-2026-1; mended in 3.1.6"
    assert re.fullmatch(r"audit: [45] packages, 1 with known vulnerabilities", last)
    lock.write_text("\n".join(LINES[:3]))
    assert audit.main(["--lock", str(lock), "--osv", service]) == 0
    assert capsys.readouterr().out == "audit: 3 packages, 0 with known vulnerabilities\n"


def test_every_package_of_the_lock_is_asked_about(audit: ModuleType, service: str) -> None:
    assert audit.main(["--osv", service]) == 0
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    asked = {name for name, _ in Vulnerabilities.asked}
    assert {line.partition("==")[0] for line in lines if ";" not in line} <= asked


def test_without_a_service_it_is_one_line(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--osv", f"http://127.0.0.1:{free_port()}/v1/query"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: not done, since the vulnerability service cannot be asked here (")


MAKE = """#!/usr/bin/env bash
case "$*" in
  *audit*) echo "audit: jinja2 3.1.0: PYSEC-2026-1"; exit 1 ;;
  *lint*) echo "All checks passed!" ;;
  test) echo "F. 1 failed"; echo "1 passed in 0.1s"; exit "$TESTS" ;;
esac
"""


@pytest.mark.parametrize("status", [0, 1])
def test_ci_tells_it_and_does_not_fail_by_it(status: int, tmp_path: Path) -> None:
    """`.ci/run` with a stand-in for make: the summary stays the last line, and the status that of tests and lint."""
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TESTS": str(status)}
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == status, done.stdout + done.stderr
    assert lines[-1] == "1 passed in 0.1s"
    assert lines.index("audit: jinja2 3.1.0: PYSEC-2026-1") > lines.index("All checks passed!")
