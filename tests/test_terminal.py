"""Output, errors, log and tracebacks on a terminal: no control characters of others, and no secrets."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.errors import ExitCode
from gmd_ray.progress import Progress
from gmd_ray.terminal import CleanRecord, clean, complain, say, show

FORGED = "a\ngmd-ray: all 9 images restored\x1b[2J\r\u202e.png"


def unsafe(text: str) -> set[str]:
    return {c for c in text if not c.isprintable()} - {"\n", "\t"}


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from gmd_ray.cli import main; sys.exit(main())", *words]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_line_stays_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(FORGED)
    complain(f"{FORGED}: http://me:hunter2@host")
    show("two\nlines\x1b[2J")
    out, err = capsys.readouterr()
    assert out == "a\\ngmd-ray: all 9 images restored\\x1b[2J\\r\\u202e.png\ntwo\nlines\\x1b[2J\n"
    assert err == "gmd-ray: a\\ngmd-ray: all 9 images restored\\x1b[2J\\r\\u202e.png: http://***@host\n"
    assert clean("写真 é ok") == "写真 é ok"


@pytest.mark.parametrize(
    ("name", "text"),
    [("gmd_ray.images", "x a\\ngmd-ray: all 9 images restored\\x1b[2J\\r\\u202e.png"),
     ("PIL.Image", "x a\n  gmd-ray: all 9 images restored\\x1b[2J\\r\\u202e.png")],
)  # fmt: skip
def test_a_log_record_is_clean_for_every_handler(name: str, text: str) -> None:
    record = CleanRecord(name, logging.INFO, __file__, 1, "x %s", (FORGED,), None)
    assert logging.Formatter().format(record) == text
    record = CleanRecord(name, logging.INFO, __file__, 1, "at http://a:hunter2@%s", ("h",), None)
    assert record.getMessage() == "at http://***@h"


def test_a_traceback_in_the_log_is_clean() -> None:
    try:
        raise ValueError(f"http://me:hunter2@host {FORGED}")
    except ValueError:
        record = CleanRecord("ray.data", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = logging.Formatter().format(record)
    assert "hunter2" not in text
    assert "\ngmd-ray: all 9" not in text
    assert unsafe(text) == set()
    assert "ValueError: http://***@host a\n" in text


def test_progress_lines_are_clean() -> None:
    progress = Progress(FORGED, 3)
    progress.update(1, file=FORGED)
    assert progress.line().isprintable()
    assert progress.line().count("a\\ngmd-ray: all 9") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "unknown://user:hunter2@host/x"),
        ("status", "unknown://user:hun/hunter2@host/x"),
        ("gate", "https://host/x?sig=hunter2"),
        ("sheet", "memory://me:hunter2 x@host"),
        ("config", "target.path=reds/train/blurr@http://me:hunter2@host"),
        ("config", "tracking.uri=http://me:hunter2@host"),
        ("config", "target.path=https://h/p?X-Amz-Signature=hunter2", "out=memory://a:hunter2/@b"),
        ("config", "teacher.prompt=${oc.env:GMD_SECRET}, sharp", "source.hq=${oc.env:GMD_SECRET}"),
        ("config", "teachr.prompt=http://me:hunter2@host"),
        ("adapt", "--wrong", "http://me:hunter2@host"),
        ("adapt", "--tracking.uri", "http://me:hunter2@host"),
        ("ls", "http://me:hunter2@host"),
        ("http://me:hunter2@host",),
        ("config", "training.steps=${oc.env:GMD_SECRET}"),
        ("generate", "out=memory://me:hunter2@x", "target.path=/", "student.path=/", "teacher.path=/"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_no_verb_tells_a_password(words: tuple[str, ...]) -> None:
    done = run(*words, GMD_SECRET="hunter2 of the environment")
    told = done.stdout + done.stderr
    assert told
    assert "hunter2" not in told
    assert "Traceback" not in told


def test_an_uncaught_error_tells_no_password(tmp_path: Path) -> None:
    code = """
import sys
from gmd_ray.verbs import catalogues
def broken(args):
    import threading
    thread = threading.Thread(target=lambda: 1 / len("" + open("http://me:hunter2@x\\n\\x1b[2J").read()))
    thread.start(); thread.join()
    raise RuntimeError("http://me:hunter2@host and " + args.what + "\\ngmd-ray: forged\\x1b[2J")
catalogues.run_ls = broken
from gmd_ray.cli import main
main(["ls", "metrics"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: http://***@host and metrics" in done.stderr
    assert "FileNotFoundError" in done.stderr
    assert "hunter2" not in done.stderr
    assert "\ngmd-ray: forged" not in done.stderr
    assert unsafe(done.stderr) == set()


def test_names_of_files_forge_no_line_of_a_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gmd_ray.pairstore.store import PairStore
    from tests.generation.shelf import fill, finish, ok_row

    store = PairStore(str(tmp_path / "run\x1b[2J" / "pairs"))
    rows = [ok_row(f"{i}{FORGED}", 6.0) for i in range(2)]
    fill(store, [rows])
    finish(store, rows)
    (tmp_path / "run\x1b[2J" / "pairs" / "rows" / FORGED).touch()
    for words in (["verify"], ["status"], ["gate"], ["sheet"]):
        main([*words, f"{tmp_path}/run\x1b[2J"])
        out, err = capsys.readouterr()
        assert out
        assert unsafe(out + err) == set()
        assert "\ngmd-ray: all 9 images" not in out + err


def test_restore_names_what_failed_on_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gmd_ray.demo.toy import weights

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / FORGED).write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "b #3.png")
    (student,) = Path(weights.__path__[0]).glob("student.safetensors")
    model = tmp_path / "best #3.safetensors"
    model.write_bytes(student.read_bytes())
    assert main(["restore", "-i", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "-m", str(model)]) == ExitCode.DATA
    out, err = capsys.readouterr()
    assert out == f"1 of 2 images restored to {tmp_path}/out\n"
    assert unsafe(out + err) == set()
    assert not any(line.startswith("gmd-ray: all 9") for line in err.splitlines())
    assert (tmp_path / "out" / "b #3.png").is_file()
