"""The predicted cost of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.keys import PUBLISHED, flatten
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, DataError, ExitCode
from gmd_ray.images.layouts import SETS
from gmd_ray.images.sets.listed import Listed
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.planning.plan import keep_prediction, later_stages, make_plan, pool_warnings, stall_warning, survey
from gmd_ray.planning.probe import Probe, run_probe
from gmd_ray.teachers import estimate_teacher
from tests.config.published import at_a_hundredth
from tests.config.published import fill as fill_sets
from tests.generation.shelf import failed_row, fill
from tests.generation.world import write_student


def test_the_sums(cfg: Config) -> None:
    cfg.plan.tflops, cfg.plan.accelerators, cfg.plan.price_per_hour = 400.0, 4, 3.0
    cfg.plan.storage_price, cfg.plan.storage_months = 0.5, 2.0
    plan = make_plan(cfg, *survey(cfg))
    one = {size: estimate_teacher(cfg.teacher).image(*size).flops for size in ((720, 1280), (512, 512))}
    flops = 3 * one[720, 1280] + one[512, 512]
    pixels = 3 * 720 * 1280 + 512 * 512
    assert (plan.images, plan.unreadable, plan.forwards) == (4, 1, 200)
    assert plan.sizes == {"720x1280": 3, "512x512": 1}
    assert plan.flops == flops
    assert plan.accelerator_hours == pytest.approx(flops / 400e12 / 3600)
    assert plan.wall_hours == pytest.approx(flops / 400e12 / 3600 / 4)
    assert (plan.disk_bytes, plan.disk_measured) == (pixels * 3 * 3, False)
    assert plan.price == pytest.approx(plan.accelerator_hours * 3.0 + plan.disk_bytes / 1e9 * 0.5 * 2)  # type: ignore[operator]


def test_the_memory_of_a_replica(cfg: Config) -> None:
    """FLUX.1-dev has 11.9 billion parameters: 23.8 GB in bfloat16, before any cache."""
    plan = make_plan(cfg, *survey(cfg))
    fastest, least = plan.replica_bytes
    assert 23.8e9 < fastest < 80e9
    assert 15e9 < least < fastest, "the modulation layers may wait in host memory, the cache be recomputed"
    cfg.teacher.injection.steps = 0
    assert make_plan(cfg, *survey(cfg)).replica_bytes[0] < fastest, "nothing is kept without injection"


def test_the_memory_of_a_replica_that_will_be_compiled(cfg: Config) -> None:
    """Recordings keep activations and a bank to themselves: `teacher.compile=auto` counts as what it comes to."""
    cfg.teacher.device, cfg.teacher.steps = "cuda", 2500  # so that a few images pay for it
    found = {}
    for choice in ("auto", True, False):
        cfg.teacher.compile = choice
        found[choice] = make_plan(cfg, *survey(cfg)).replica_bytes
    assert found["auto"] == found[True]
    assert found["auto"] > found[False]


def test_what_comes_after_the_stream_is_counted(cfg: Config) -> None:
    cfg.training.steps, cfg.training.batch_size, cfg.controls = 1000, 8, ["source_only"]
    listed = [Listed("target", "a", None, 9), Listed("target test", "b", None, 30), Listed("source test", "c", "d", 20)]
    finetune, evaluation, note = later_stages(cfg, listed)
    assert finetune.split()[:3] == ["fine-tune", "16,000", "crops:"]
    assert evaluation.split()[:3] == ["evaluation", "150", "images:"]
    assert "Stages 0 to 1b" in note
    assert len(later_stages(cfg, listed[:1])) == 2


def test_the_licence_of_the_teacher_is_in_the_plan(cfg: Config) -> None:
    plan = make_plan(cfg, *survey(cfg))
    assert plan.as_json()["teacher_licence"].startswith("unknown (no README.md")
    assert plan.table().splitlines()[-1].split(maxsplit=2)[:2] == ["teacher's", "licence"]
    cfg.teacher.licence = "commercial"
    changed = make_plan(cfg, *survey(cfg))
    assert changed.table().endswith("commercial (teacher.licence)")
    assert changed.settings_fingerprint == plan.settings_fingerprint, "it changes no pixel"


def test_one_accelerator_is_one(cfg: Config) -> None:
    cfg.plan.tflops, cfg.plan.accelerators = 400.0, 1
    assert "on 1 accelerator, never waiting" in make_plan(cfg, *survey(cfg)).table()


def test_the_student_enlarges(cfg: Config) -> None:
    cfg.plan.scale = 2
    cfg.generation.keep_restored = False
    plan = make_plan(cfg, *survey(cfg))
    assert plan.sizes == {"1440x2560": 3, "1024x1024": 1}
    assert plan.disk_bytes == (3 * 720 * 1280 + 512 * 512) * 3 * (1 + 4)


def test_no_constant_is_made_up(cfg: Config) -> None:
    plan = make_plan(cfg, *survey(cfg))
    assert plan.accelerator_hours is plan.wall_hours is plan.price is None
    assert "give plan.tflops=..., or --probe 16" in plan.table()
    cfg.plan.tflops = 400.0
    assert "give plan.price_per_hour=..." in make_plan(cfg, *survey(cfg)).table()


def test_a_step_cache_makes_the_figures_upper_bounds(cfg: Config) -> None:
    cfg.plan.tflops = 400.0
    plain = make_plan(cfg, *survey(cfg))
    cfg.teacher.step_cache = 0.1
    cached = make_plan(cfg, *survey(cfg))
    assert (cached.flops, cached.accelerator_hours) == (plain.flops, plain.accelerator_hours)
    assert "at most" not in plain.basis
    assert ": at most " in cached.basis
    assert "at most, since teacher.step_cache=0.1 skips some" in cached.table()
    assert "teacher.step_cache" not in plain.table()


def test_the_fleet_is_what_the_pool_takes(cfg: Config) -> None:
    for pool, gpus, expected in ((4, 1.0, 4), (4, 0.5, 2), (3, 2.0, 6), (2, 0.0, 2)):
        cfg.teacher.pool.max, cfg.teacher.pool.num_gpus = pool, gpus
        assert make_plan(cfg, *survey(cfg)).accelerators == expected


def probed(seconds: dict[str, float], seconds_per_flop: float = 0.0, **stages: float) -> Probe:
    return Probe(2, seconds, seconds_per_flop, 0.5, {"restore": 0.1, "project": 6.0, "score": 0.1, **stages})


def test_a_probe_replaces_the_model_of_the_machine(cfg: Config) -> None:
    probe = probed({"720x1280": 6.0}, seconds_per_flop=1e-15)
    jobs, unreadable = survey(cfg)
    plan = make_plan(cfg, jobs, unreadable, probe)
    small = next(job.flops for job in jobs if job.size == "512x512")
    assert plan.accelerator_hours == pytest.approx((3 * 6.0 + small * 1e-15) / 3600)
    assert plan.disk_bytes == (3 * 720 * 1280 + 512 * 512) * 3 * 3 / 2
    assert "a probe of 2 images" in plan.table()


def test_a_block_slower_than_the_runs_patience_is_told(cfg: Config) -> None:
    jobs, unreadable = survey(cfg)
    probe = probed({job.size: 50.0 for job in jobs})
    plan = make_plan(cfg, jobs, unreadable, probe)
    assert stall_warning(cfg, plan) is None
    cfg.generation.rows_per_block = 32
    assert "a block of 32 images takes a teacher about 1600 s" in (stall_warning(cfg, plan) or "")
    assert stall_warning(cfg, make_plan(cfg, jobs, unreadable)) is None, "nobody knows how fast"


def test_an_image_slower_than_the_bound_on_a_batch_is_told(cfg: Config) -> None:
    jobs, unreadable = survey(cfg)
    plan = make_plan(cfg, jobs, unreadable, probed({job.size: 50.0 for job in jobs}))
    cfg.generation.batch_timeout_s = 90.0
    assert "an image takes a teacher about 50 s, and is given up as one that hangs" in (stall_warning(cfg, plan) or "")
    cfg.generation.batch_timeout_s = 0.0
    assert stall_warning(cfg, plan) is None


def test_pools_that_keep_the_teachers_waiting_are_told(cfg: Config) -> None:
    cfg.teacher.pool.max, cfg.student.pool.max, cfg.scorer.pool.max = 64, 2, 1
    assert pool_warnings(cfg, probed({}, restore=0.18, score=0.09)) == []
    [line] = pool_warnings(cfg, probed({}, restore=0.3, score=0.09))
    assert "64 teachers would wait for the student" in line
    assert "set student.pool.max=4" in line  # 64 x 0.3 / 6 = 3.2
    assert "set scorer.pool.max=64" in pool_warnings(cfg, probed({}, score=6.0))[0]
    assert pool_warnings(cfg, probed({}, project=0.0)) == []


@pytest.mark.parametrize(
    ("preset", "scale", "targets"),
    [("deblur_reds", 1, 240), ("deblur_realblur", 1, 37), ("sr_weak_to_strong", 4, 60), ("sr_dped", 2, 56)],
)
def test_the_experiments(
    preset: str, scale: int, targets: int, flux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At a hundredth of the counts: a root that is absent, empty, whole, and whole no more."""
    at_a_hundredth(monkeypatch)
    root, out = tmp_path / "root", tmp_path / "run"
    args = ["plan", f"preset={preset}", f"out={out}", f"teacher.path={flux}", f"plan.scale={scale}"]
    args.append("plan.tflops=400")

    def content(name: str) -> bytes:
        """Make pictures for each side of a set, of sizes that go together."""
        side = 64 * scale if name.rpartition("/")[2] in ("hq", "sharp", "gt") else 64
        buffer = io.BytesIO()
        Image.new("L", (side, side), sum(name.encode()) % 256).save(buffer, "PNG")
        return buffer.getvalue()

    def refused(status: ExitCode) -> str:
        assert main(args) == status
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gmd-ray: ")]
        return errors[0]

    assert refused(ExitCode.SETTINGS).startswith(
        "gmd-ray: plan needs data.root=... (the folder of the data sets that source.hq and"
    )
    args.append(f"data.root={root}")
    assert refused(ExitCode.SETTINGS) == f"gmd-ray: data.root={root}: no such file or folder"
    root.mkdir()
    assert f"@{root}: " in refused(ExitCode.DATA)

    values = dict(flatten(load_config(args[1:])))
    fill_sets(root, {values[key].partition("@")[0] for key in PUBLISHED if values[key]}, content)
    assert main(args) == 0
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0] for line in printed.splitlines()}
    assert {"images", "forwards", "accelerator-hours", "wall time, hours", "disk, GB", "cost, USD"} <= rows
    assert printed.startswith("source: ")
    saved = json.loads((out / "pairs" / "plan.json").read_text())
    assert (saved["images"], saved["accelerators"]) == (targets, 4)
    assert main([*args, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {key: document[key] for key in saved} == saved
    assert {each["role"] for each in document["sets"]} >= {"source", "target"}

    next(path for path in (root / SETS[values["source.hq"].partition("@")[0]].folder).rglob("*.png")).unlink()
    assert f"@{root}: " in refused(ExitCode.DATA)
    args.append(f"target.path={tmp_path / 'nowhere'}")
    assert refused(ExitCode.SETTINGS) == f"gmd-ray: target.path={tmp_path / 'nowhere'}: no such file or folder"


def test_the_scale_of_a_checkpoint(cfg: Config, tmp_path: Path) -> None:
    cfg.plan.scale = None
    with pytest.raises(ConfigError, match=r"plan needs student.path=\.\.\. \(or plan.scale"):
        survey(cfg)
    write_student(tmp_path / "student.pth")
    cfg.student.path = str(tmp_path / "student.pth")
    assert survey(cfg)[0][0].size == "720x1280"


def test_nothing_to_project(cfg: Config, tmp_path: Path) -> None:
    for file in (tmp_path / "photos").iterdir():
        file.write_text("no")
    with pytest.raises(DataError, match="none of its 5 images can be read"):
        survey(cfg)


def test_a_run_whose_speed_is_known_keeps_its_prediction(cfg: Config, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(cfg.out, "pairs", "plan.json")

    def kept() -> dict[str, object]:
        keep_prediction(cfg, RunInputs())
        found: dict[str, object] = json.loads(path.read_text())
        return found

    keep_prediction(cfg, RunInputs())
    assert not path.exists(), "no hours are known"
    cfg.plan.tflops = 400.0
    first = kept()
    assert first == json.loads(json.dumps(make_plan(cfg, *survey(cfg)).as_json()))
    cfg.plan.tflops = 100.0
    assert kept() == first, "the plan that the user has seen"
    cfg.teacher.steps = 7
    assert kept()["settings_fingerprint"] != first["settings_fingerprint"], "another run"
    path.unlink()
    cfg.teacher.method = "nobody:knows"
    with caplog.at_level("INFO"):
        keep_prediction(cfg, RunInputs())
    assert not path.exists()
    assert "no prediction of time and cost: " in caplog.text


def test_a_probe_that_fails_says_why_and_leaves_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(small: Config, models: object = None) -> None:
        assert small.teacher.pool.max == 1
        fill(PairStore(store_url(small.out)), [[failed_row(f"{i}.png", "project") for i in range(2)]])

    monkeypatch.setattr("gmd_ray.generation.run.generate", fails)
    cfg.teacher.pool.max = 4
    jobs, _ = survey(cfg)
    with pytest.raises(DataError, match=r"none of 2 images came through \(why\)"):
        run_probe(cfg, jobs, 2)
    assert not list(Path(cfg.out).glob("probe-*"))
    cfg.out = "s3://bucket/run"
    with pytest.raises(DataError, match="a probe needs a folder that every node sees"):
        run_probe(cfg, jobs, 2)
