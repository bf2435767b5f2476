"""A small run with a report, a pair store and an adapted student, and the site of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gmd_ray.config import Config
from gmd_ray.config.saving import save_config
from gmd_ray.serving.server import PageServer, Site
from tests.browser import browser, open_page
from tests.evaluation.conftest import save_student, write_store

__all__ = ["browser", "open_page"]

SCORES = (5.5, 4.2, 3.9, None, 6.1)
HOSTILE = "a <b>&\"'?#{:02d}.png"
"""Names of pairs, with every sign that a page or a query could trip over."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of five inputs: two accepted at threshold 4.5, two rejected, one failed."""
    out = tmp_path / "run"
    write_store(out, SCORES, names=HOSTILE)
    save_student(out / "finetune" / "adapted" / "student.safetensors", 1, 0.3)
    (out / "report.html").write_text("<!doctype html><title>Report</title><script>document.title = 'ran'</script>")
    cfg = Config(out=str(out))
    cfg.student.path = save_student(tmp_path / "student.safetensors", 0, 0.3)
    cfg.student.device, cfg.scorer.threshold = "cpu", 4.5
    save_config(cfg, out / "config.yaml")
    return out


@contextlib.contextmanager
def serving(site: Site) -> Iterator[PageServer]:
    """The site on a free port of this machine."""
    server = PageServer(site, port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
