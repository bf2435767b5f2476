"""The worked examples of docs/, taken out of the pages and used through the real settings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.generation import Models
from gmd_ray.generation.resume import check_resume
from gmd_ray.images.degradation import degradations
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.encode import decode_png, encode_png
from gmd_ray.pairstore.manifest import make_manifest
from gmd_ray.pairstore.schema import PAIR_SCHEMA, FidelityBound, accepted, rows_dataset
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import check_totals
from gmd_ray.quality import catalogue, full_reference, known_metrics, load_metric
from gmd_ray.teachers import Teacher, load_teacher
from tests.docs.reading import DOCUMENTS, Document, example
from tests.generation.shelf import failed_row, fill, finish, ok_row

Install = Callable[[str], ModuleType]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write an example into a module and import it; the project's tables are afterwards as they were."""
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = (degradations.PRESETS, full_reference._COMPARE, catalogue.OWN)
    before = [dict(table) for table in tables]
    catalogue.catalogue.cache_clear()

    def write(name: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(example(f"{name}.py"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for table, values in zip(tables, before, strict=True):
        table.clear()
        table.update(values)  # type: ignore[arg-type]
    catalogue.catalogue.cache_clear()


def page(name: str) -> Document:
    (found,) = [document for document in DOCUMENTS if document.name == f"docs/{name}"]
    return found


def test_the_teacher_is_named_in_the_settings(install: Install) -> None:
    install("my_teacher")
    teacher = load_teacher(load_config(["teacher.method=my_teacher:Sharpen", "teacher.strength=0.5"]).teacher)
    assert isinstance(teacher, Teacher)
    step = torch.zeros(2, 3, 4, 8)
    step[..., 4:] = 0.6
    sharp = teacher.project(step, ["a", "b"])
    assert sharp.shape == step.shape
    # The mean of 3x3 pixels at the bright side of the edge is 0.4: 0.6 + 0.5 * (0.6 - 0.4).
    torch.testing.assert_close(sharp[..., 4], torch.full((2, 3, 4), 0.7))
    other = load_teacher(load_config(["teacher.method=my_teacher:Sharpen", "teacher.strength=0.6"]).teacher)
    assert teacher.fingerprint != other.fingerprint


def test_the_metric_is_measured_by_its_name(install: Install) -> None:
    install("my_metric")
    cfg = load_config(["evaluation.metrics=[psnr,snr]"], check_paths=False, known_metrics=known_metrics)
    metric = load_metric(cfg.evaluation.metrics[1], device="cpu", crop_border=2)
    assert (metric.needs_reference, metric.higher_is_better) == (True, True)
    levels = sample_rng("metric").integers(0, 256, (2, 12, 12, 3)).astype(np.float64)
    image, truth = (torch.from_numpy(x / 255).permute(2, 0, 1).float() for x in levels)
    result, reference = levels[:, 2:-2, 2:-2]
    expected = 10 * np.log10((reference**2).sum() / ((result - reference) ** 2).sum())
    assert metric(image, truth) == pytest.approx(expected, abs=1e-9)
    assert metric(truth, truth) == full_reference.MAX_PSNR


def test_the_degradation_is_named_listed_and_written(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("my_degradation")
    image = sample_rng("haze").random((8, 8, 3), dtype=np.float32)
    haze = degradations.make_degradation("haze", {"density": [0.5, 0.5]})
    degraded = haze(image, sample_rng("any"))
    assert degraded.dtype == np.float32
    np.testing.assert_allclose(degraded, image / 2 + 0.4, atol=0.5 / 255 + 1e-6)
    assert main(["ls", "degradations"]) == 0
    assert "haze" in capsys.readouterr().out
    (tmp_path / "hq").mkdir()
    (tmp_path / "hq" / "a.png").write_bytes(encode_png(image))
    out = tmp_path / "frozen"
    command = ["degrade", "-i", str(tmp_path / "hq"), "-o", str(out), "--preset", "haze", "--workers", "1"]
    assert main(command) == 0
    assert '"operation": "haze"' in (out / "parameters.jsonl").read_text()
    lq, hq = (decode_png((out / side / "a.png").read_bytes()) for side in ("lq", "hq"))
    assert np.abs(lq - hq).max() > 0.05


@pytest.mark.parametrize("name", ["my_teacher.py", "my_metric.py", "my_degradation.py"])
def test_an_example_has_about_ten_lines(name: str) -> None:
    lines = [line for line in example(name).splitlines()[1:] if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


ROWS = [
    *(ok_row("a.png", 4.2), ok_row("b.png", 4.1), ok_row("c.png", 9.0), ok_row("removed.png", 9.0)),
    failed_row("d.png"),
]
"""Threshold 4.2, which float32 cannot hold: a score equal to it is accepted all the same."""


@pytest.mark.parametrize("higher", [True, False])
def test_the_store_is_read_as_the_page_reads_it(tmp_path: Path, higher: bool) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    fill(store, [ROWS[:2], ROWS[2:]])
    finish(store, ROWS, threshold=4.2, higher=higher)
    store.write("manifest.json", {**store.read("manifest.json"), "stranger_ids": ["removed.png"]})
    code = example("read_store.py")
    assert len([line for line in code.splitlines() if not line.startswith("#")]) == 6
    told: dict[str, object] = {"store": str(tmp_path / "pairs")}
    exec(code, told)
    pairs = told["pairs"]
    assert isinstance(pairs, pd.DataFrame)
    assert sorted(pairs["id"]) == (["a.png", "c.png"] if higher else ["a.png", "b.png"])
    view = accepted(4.2, higher, ["removed.png"])
    ours = rows_dataset(str(tmp_path / "pairs")).to_table(columns=["id", "lq", "pseudo_target"], filter=view)
    assert pairs.sort_values("id").to_dict("records") == ours.sort_by("id").to_pylist()


def test_a_store_without_removed_photos_is_read_too(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    fill(store, [ROWS[:3]])
    finish(store, ROWS[:3], threshold=4.2)
    told: dict[str, object] = {"store": str(tmp_path / "pairs")}
    exec(example("read_store.py"), told)
    assert sorted(told["pairs"]["id"]) == ["a.png", "c.png"]  # type: ignore[index]


def test_the_columns_of_the_page_are_those_of_the_schema() -> None:
    lines = [line for line in page("store-format.md").sections()["Rows"].splitlines() if line.startswith("| `")]
    columns = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines]
    assert columns == [(field.name, str(field.type)) for field in PAIR_SCHEMA]


def test_the_bound_of_the_page_has_the_direction_of_each_fidelity() -> None:
    text = page("store-format.md").sections()["Accepted pairs"]
    assert "above for `psnr`\n   and `ssim`, below for `lpips` and `dists`" in text
    signs = {name: str(FidelityBound(name, 1.0)) for name in ("psnr", "ssim", "lpips", "dists")}
    assert signs == {"psnr": "psnr >= 1", "ssim": "ssim >= 1", "lpips": "lpips <= 1", "dists": "dists <= 1"}


def keys_of(section: str) -> set[str]:
    lines = [line for line in page("store-format.md").sections()[section].splitlines() if line.startswith("| `")]
    return {key.strip(" `") for line in lines for key in line.split("|")[1].split(",")}


def test_the_keys_of_the_page_are_those_of_the_documents(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    check_resume(store, Config(), [], Models())
    assert keys_of("settings.json") == set(store.read("settings.json"))
    fill(store, [ROWS])
    store.refresh()
    rows, inputs = store.index(), [str(row["id"]) for row in ROWS]
    totals = check_totals(rows, inputs, resumed=0, threshold=4.2, higher_is_better=True, seconds=1.0)
    manifest = make_manifest(Config(), store, totals, {"scorer": {"higher_is_better": True}}, rows, inputs)
    assert keys_of("manifest.json") == set(manifest)


def test_a_part_file_is_plain_parquet(tmp_path: Path) -> None:
    """Readers may rely on this: any reader of Parquet takes a part, and its name does not depend on the order."""
    store = PairStore(str(tmp_path / "pairs"))
    [name] = fill(store, [ROWS])
    assert pq.read_schema(tmp_path / "pairs" / "rows" / name).names == PAIR_SCHEMA.names
    again = PairStore(str(tmp_path / "again"))
    assert fill(again, [ROWS[::-1]]) == [name]
