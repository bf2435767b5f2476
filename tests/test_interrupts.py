"""Ctrl-C, sent to real commands: in Python's imports, in a verb, in what tidies up, twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gmd_ray.errors import ExitCode
from gmd_ray.interrupts import SENTENCE, interruptible
from tests import PATIENCE_S
from tests.ray_utils.sockets import family

ROOT = Path(__file__).resolve().parents[1]


def command(code: str) -> subprocess.Popen[str]:
    """A process of its own session, with SIGINT as a terminal leaves it; it prints `here` where the signal is due."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def interrupted(code: str, times: int = 1) -> tuple[int, str, str]:
    with command(code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        try:
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.returncode, out, err


WAITS = "import time; print('here'); time.sleep(30)"
"""The work of a command at the moment of the signal."""

MOMENTS = {
    "a verb": f"def work():\n    {WAITS}\nsys.exit(interruptible(work))",
    "an import that makes an error of its own of it": f"""
def work():
    try:
        {WAITS}
    except BaseException as error:
        raise ImportError("cannot import") from error
sys.exit(interruptible(work))
""",
    "what runs at a fork, where Python drops exceptions": """
def hook():
    print("here")
    time.sleep(1)
    print("too far")
def work():
    os.register_at_fork(after_in_parent=hook)
    if os.fork() == 0:
        os._exit(0)
    time.sleep(30)
sys.exit(interruptible(work))
""",
    "a finalizer, where it does so too": """
class Gone:
    def __del__(self):
        print("here")
        time.sleep(1)
def work():
    Gone()
    time.sleep(30)
sys.exit(interruptible(work))
""",
    "the shutdown after it": f"""
def late():
    {WAITS}
def work():
    atexit.register(late)  # as Ray and MLflow do when they are imported
    return 0
sys.exit(interruptible(work))
""",
}


@pytest.mark.parametrize("code", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("times", [1, 3])
def test_it_ends_with_its_status_and_the_sentence_alone(code: str, times: int) -> None:
    imports = "import atexit, os, sys, time\nfrom gmd_ray.interrupts import interruptible\n"
    status, _, err = interrupted(imports + code, times)
    assert (status, err) == (ExitCode.INTERRUPTED, f"{SENTENCE}\n")


def test_no_lock_of_logging_stays_behind() -> None:
    """In the middle of its release, which is no place for an exception: other threads would wait for it for ever."""
    status, out, err = interrupted(
        """
import logging, sys, threading, time
from gmd_ray.interrupts import interruptible
class Slow:
    def release(self):
        print("here")
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        real.release()
def work():
    global real
    logging._acquireLock()
    real, logging._lock = logging._lock, Slow()
    try:
        logging._releaseLock()
        time.sleep(30)
    finally:
        logging._lock = real
        thread = threading.Thread(target=logging.getLogger("x").setLevel, args=(10,), daemon=True)
        thread.start()
        thread.join(5)
        print("held" if thread.is_alive() else "free")
sys.exit(interruptible(work))
"""
    )
    assert (status, out, err) == (ExitCode.INTERRUPTED, "free\n", f"{SENTENCE}\n")


def test_the_second_cuts_short_what_tidies_up_and_the_third_the_shutdown() -> None:
    status, out, err = interrupted(
        """
import atexit, sys, time
from gmd_ray.interrupts import interruptible
def slow():
    print("shutting down")
    time.sleep(30)
    print("never")
def work():
    atexit.register(slow)
    try:
        print("here")
        time.sleep(30)
    finally:
        print("tidying up")
        time.sleep(30)
        print("never")
sys.exit(interruptible(work))
""",
        times=3,
    )
    assert (status, err) == (ExitCode.INTERRUPTED, f"{SENTENCE}\n")
    assert out.split("\n") == ["tidying up", "shutting down", ""]


@pytest.mark.parametrize("module", ["gmd_ray.verbs.runs", "gmd_ray.config.load", "gmd_ray.quality"])
def test_the_command_line_listens_from_its_first_imports_on(module: str) -> None:
    """The signal comes while this one is looked for: before the arguments are read, and after."""
    status, _, err = interrupted(
        f"""
import sys, time
class Slow:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            print("here")
            time.sleep(30)
sys.meta_path.insert(0, Slow())
from gmd_ray.cli import main
sys.exit(main(["config", "preset=toy"]))
"""
    )
    assert (status, err) == (ExitCode.INTERRUPTED, f"{SENTENCE}\n")


def test_an_error_without_ctrl_c_stays_what_it_is() -> None:
    def broken() -> int:
        raise ImportError("no such module")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ImportError):
        interruptible(broken)
    assert interruptible(lambda: 7) == 7
    assert signal.getsignal(signal.SIGINT) is before


def test_where_it_is_ignored_it_stays_so() -> None:
    """As of a job in the background of a shell script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert interruptible(lambda: signal.raise_signal(signal.SIGINT) or 0) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_processes_of_a_pool_do_not_speak(seconds: float, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to them too: while they import, and at work."""
    from tests.generation.world import write_photo

    for number in range(200):
        write_photo(tmp_path / "hq" / f"{number}.png", (256, 256))
    process = command(
        f"""
import sys
from gmd_ray.cli import main
print("here")
sys.exit(main(["degrade", "-i", {str(tmp_path / "hq")!r}, "-o", {str(tmp_path / "out")!r}, "--preset", "realesrgan",
    "--workers", "2"]))
"""
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        deadline = time.monotonic() + 60
        while len(family(process.pid)) < 4:  # itself, the resource tracker, two workers
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (ExitCode.INTERRUPTED, f"{SENTENCE}\n")
