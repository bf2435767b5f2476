"""The drop zone by real requests, with a real student."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gmd_ray.config import Config
from gmd_ray.errors import ModelError
from gmd_ray.images.files.photo import Photo
from gmd_ray.serving import drop_zone
from gmd_ray.serving.drop_zone import DropZone
from gmd_ray.serving.run_site import RunSite
from gmd_ray.serving.server import PageServer
from gmd_ray.students import load_student
from gmd_ray.verbs.pages.serve import run_site
from tests.serving.asking import get, pixels, png, send
from tests.serving.conftest import serving


@pytest.fixture
def server(run: Path) -> Iterator[PageServer]:
    with serving(run_site(str(run))) as running:
        yield running


def test_a_dropped_photo_is_restored_by_the_adapted_student(server: PageServer, run: Path) -> None:
    data = png()
    status, text = send(server, data)
    made = json.loads(text)
    assert (status, made["width"], made["height"]) == (200, 24, 20)
    before = get(server, f"/result?id={made['id']}&of=before")[1]
    after = get(server, f"/result?id={made['id']}&of=after")[1]
    assert np.array_equal(pixels(before), pixels(data))
    cfg = Config()
    cfg.student.path = str(run / "finetune" / "adapted" / "student.safetensors")
    cfg.student.device = "cpu"
    lq = torch.from_numpy(pixels(data).astype(np.float32) / 255).permute(2, 0, 1)[None]
    expected = load_student(cfg.student).restore(lq)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(after), np.rint(expected * 255).astype(np.uint8))
    assert not np.array_equal(pixels(after), pixels(before))


@pytest.mark.parametrize("data", [b"", b"no picture", png()[:60], b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_photo_is_refused_and_the_next_one_restored(server: PageServer, data: bytes) -> None:
    status, text = send(server, data)
    assert status == 400
    assert text.startswith("This file cannot be restored: ")
    assert send(server, png())[0] == 200


def test_a_photo_of_too_many_pixels_or_bytes_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_zone, "LARGEST_PHOTO", 300)
    site = run_site(str(run))
    site.largest_body = 20_000
    with serving(site) as server:
        status, text = send(server, png())  # 480 pixels
        assert (status, "too large: 24x20" in text) == (400, True)
        assert send(server, png(10))[0] == 200
        assert send(server, b"x" * 20_001)[0] == 413


class SlowStudent:
    """Notes how many photos it restores at the same time."""

    def __init__(self) -> None:
        self.now = self.most = self.loads = 0

    def load(self) -> SlowStudent:
        self.loads += 1
        return self

    def __call__(self, photo: Photo, key: str) -> Photo:
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return photo


def test_photos_are_restored_one_at_a_time_and_few_are_held(tmp_path: Path) -> None:
    student = SlowStudent()
    with serving(RunSite("run", tmp_path / "none", None, DropZone(student.load, 10**6))) as server:
        found: list[tuple[int, str]] = []
        threads = [threading.Thread(target=lambda i=i: found.append(send(server, png(seed=i)))) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [status for status, _ in found] == [200] * 12
        assert (student.most, student.loads) == (1, 1)
        held = [get(server, f"/result?id={json.loads(text)['id']}&of=after")[0] for _, text in found]
        assert sorted(held) == [200] * drop_zone.KEPT + [404] * (12 - drop_zone.KEPT)


def test_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_zone, "WAIT_S", 0.05)
    photos = DropZone(SlowStudent().load, 10**6)
    with serving(RunSite("run", tmp_path / "none", None, photos)) as server, photos._turn:
        assert send(server, png())[0] == 503


def test_a_student_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    def broken() -> SlowStudent:
        raise ModelError("x.pth: not a checkpoint")

    with serving(RunSite("run", tmp_path / "none", None, DropZone(broken, 10**6))) as server:
        assert send(server, png()) == (500, "The student failed: x.pth: not a checkpoint\n")
