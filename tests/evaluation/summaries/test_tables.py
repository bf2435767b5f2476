"""Texts of an evaluation: Markdown, LaTeX and JSON, and the paper's rows."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gmd_ray.config import Config
from gmd_ray.errors import ConfigError
from gmd_ray.evaluation import Evaluation, record
from gmd_ray.evaluation.results import PICTURES, ROWS, InferenceCost
from gmd_ray.evaluation.summaries import FILES, json_text, latex, markdown, save_tables
from gmd_ray.evaluation.summaries.latex import escape
from gmd_ray.evaluation.summaries.published import published_rows
from gmd_ray.evaluation.summaries.verdict import sentences
from gmd_ray.progress import NullRecorder
from gmd_ray.quality import metric_variant

HIGHER = {"psnr": True, "ssim": True, "niqe": False}


def evaluation(values: dict[tuple[str, str, str], np.ndarray], metrics: tuple[str, ...] = ("psnr",)) -> Evaluation:
    """Build an evaluation from arrays of values by (dataset, student, metric)."""
    rows = [
        {"dataset": dataset, "id": f"{i}.png", "student": student, "metric": metric, "value": float(value)}
        | {"higher_is_better": HIGHER[metric]}
        for (dataset, student, metric), line in values.items()
        for i, value in enumerate(line)
    ]
    students = tuple(dict.fromkeys(student for _, student, _ in values if student != "hq"))
    table = pa.Table.from_pylist(rows, schema=ROWS)
    variants = {name: metric_variant(name, 4) for name in metrics}
    return Evaluation(table, PICTURES.empty_table(), students, metrics, "crop_border=4", variants=variants)


def psnr(lq: float, adapted: float, n: int = 40, dataset: str = "target") -> dict[tuple[str, str, str], np.ndarray]:
    """Values of a photo and of the adapted student by their mean gain over a baseline."""
    rng = np.random.default_rng(0)
    base = rng.normal(34.7, 2, n)
    gains = {"lq": lq, "baseline": 0.0, "adapted": adapted}
    return {
        (dataset, name, "psnr"): base + gain + (rng.normal(0, 0.3, n) if gain else 0) for name, gain in gains.items()
    }


@pytest.fixture
def noise() -> Evaluation:
    """The figures of real camera noise: NIQE calls the photo best, and the adapted student lands on the truth."""
    rng = np.random.default_rng(2)
    truth = rng.normal(11.2, 0.5, 30)
    values = {
        ("target", "lq", "niqe"): truth - 4.4 + rng.normal(0, 0.3, 30),
        ("target", "baseline", "niqe"): truth - 4.3 + rng.normal(0, 0.3, 30),
        ("target", "adapted", "niqe"): truth + rng.normal(0, 0.3, 30),
        ("target", "hq", "niqe"): truth,
    } | psnr(-0.3, 1.6, 30)
    found = evaluation(values, ("psnr", "niqe"))
    costs = {"baseline": InferenceCost(668_227, 0.25, "CPU (1 thread)"), "adapted": InferenceCost(668_227, 0.25, "CPU")}
    return replace(found, costs={"target": costs})


def test_markdown_judges_by_the_truth_and_names_variants(noise: Evaluation) -> None:
    lines = markdown(noise).splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert list(rows)[2:] == ["untouched photo", "baseline", "adapted", "ground truth"]
    assert "(distance -4." in rows["adapted"]
    assert "closer to the truth)" in rows["adapted"]
    assert "no difference seen)" in rows["untouched photo"]
    assert "better)" in rows["adapted"].split("|")[2]
    assert rows["ground truth"].split("|")[2].strip() == "–"
    assert "- psnr: higher is better; RGB, 4 px border cut off" in lines
    assert "- niqe: lower is better; Y of YIQ, pyiqa's niqe" in lines
    assert lines[2].startswith("Adaptation made the restored photos better: ")


def test_json_holds_what_the_table_shows(noise: Evaluation) -> None:
    document = json.loads(json_text(noise))
    target = document["test_sets"]["target"]
    assert document["verdict"] == sentences(noise)
    assert target["images"] == 30
    assert target["metrics"]["niqe"]["lower_is_better"]
    assert target["metrics"]["niqe"]["judged_by_distance_to_truth"]
    rows = {row["method"]: row for row in target["rows"]}
    assert [row["label"] for row in target["rows"]] == ["untouched photo", "baseline", "adapted", "ground truth"]
    assert rows["adapted"]["parameters"] == 668_227
    assert rows["lq"]["parameters"] is None
    found, difference = rows["adapted"]["values"]["niqe"], noise.difference("adapted", "target", "niqe")
    assert difference is not None
    assert found["mean"] == noise.mean("adapted", "target", "niqe")
    assert found["images"] == 30
    assert found["difference"]["low"] == difference.low
    assert found["difference"]["word"] == "better"
    assert found["difference"]["to_truth"] is True
    assert rows["baseline"]["values"]["psnr"]["difference"] is None
    assert document["published"] is None


def test_latex_is_balanced_and_escaped(noise: Evaluation) -> None:
    odd = replace(noise, students=(*noise.students, "a_b & 100%"))
    extra = [
        {"dataset": "target", "id": "0.png", "student": "a_b & 100%", "metric": "psnr", "value": 30.0}
        | {"higher_is_better": True}
    ]
    odd = replace(odd, rows=pa.concat_tables([odd.rows, pa.Table.from_pylist(extra, schema=ROWS)]))
    text = latex(odd)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1, "every row has all columns"
    assert body[0] == r"method & psnr $\uparrow$ & niqe $\downarrow$ & parameters & s/image \\"
    assert r"a\_b \& 100\% & 30.00" in text
    assert r"{\scriptsize +1." in text
    assert r"{\scriptsize distance $-$4." in text, "a minus sign, no hyphen"
    assert "closer to the truth}" in text
    assert "better}" in text
    assert text.count(r"\begin{tabular}{lrrrr}") == text.count(r"\end{tabular}") == 1
    assert escape("50 % of {x}_1^2 \\ ~") == r"50 \% of \{x\}\_1\textasciicircum{}2 \textbackslash{} \textasciitilde{}"


def test_the_papers_rows_stand_below_ours_and_say_so(noise: Evaluation) -> None:
    found = replace(noise, metrics=("psnr", "niqe"), published="5/REDS")
    text = markdown(found)
    assert "| w/ GMD (offline) (published) | 24.35 | – | 1.3B | 1.17 |" in text
    assert "| + RF-Solver (online) (published) | 22.15 | – | 1.3B+12B | 1.17+4.79 |" in text
    assert "- published: printed in Table 5 (REDS) of the paper" in text
    assert "w/ GMD (offline) (published) & 24.35 & -- & 1.3B & 1.17" in latex(found)
    both = replace(evaluation(psnr(-1, 1) | psnr(-1, 1, dataset="source")), published="3/REDS")
    target, source = markdown(both).split("## source")
    assert "| Uformer (published) | 27.20 |" in target, "with the digits of the paper"
    assert "published" not in source, "they are figures of a target"
    [*_, ours] = json.loads(json_text(found))["published"]["rows"]
    assert ours["values"]["psnr"] == 24.35


def test_published_figures() -> None:
    """Figures as the paper prints them, from three of its tables."""
    rows = {row.method: row.values for row in published_rows("3/REDS")}
    assert next(iter(rows)) == "DeblurGANv2"
    assert rows["LDM-Deblur (Baseline)"]["musiq"] == 57.60
    assert rows["LDM-Deblur w/ GMD (Ours)"] == {
        "lpips": 0.179, "nima": 4.460, "musiq": 63.67, "fid": 31.64, "clipiqa": 0.404, "psnr": 24.35, "ssim": 0.682
    }  # fmt: skip
    assert {row.method: row.values["brisque"] for row in published_rows("13/DPED")}["HYPIR"] == 18.97
    assert published_rows("4/DIV2K")[0].values["ssim"] == 0.564
    with pytest.raises(ConfigError, match=r"evaluation\.published=3/REDZ: did you mean '3/REDS'"):
        published_rows("3/REDZ")


def test_published_figures_are_those_of_the_transcription(shared_data: Path) -> None:
    source = shared_data.parent / "research" / "paper_tables.csv"
    if not source.is_file():
        pytest.skip(f"no {source}")
    costs = {"Params": "parameters", "Latency": "seconds"}
    with source.open(encoding="utf-8") as file:
        expected = {
            (
                *(row["table"], re.split(" |-iPhone", row["dataset"])[0], row["method"].replace("*", "")),
                *(costs.get(row["metric"], row["metric"].lower()), re.sub(r"^\.", "0.", row["value"].replace("s", ""))),
            )
            for row in csv.DictReader(file)
            if row["table"] in ("3", "4", "5", "6", "7", "11", "12", "13")
        }
    tables = ["3/REDS", "3/RealBlur-J", "4/DIV2K", "4/DPED", "5/REDS", "6/REDS", "7/REDS", "11/REDS"]
    found = {
        (*table.split("/"), row.method, metric, text)
        for table in [*tables, "12/REDS", "13/DPED"]
        for row in published_rows(table)
        for metric, text in {**row.printed, "parameters": row.parameters, "seconds": row.seconds}.items()
        if text
    }
    assert found == expected


@pytest.mark.parametrize(
    ("name", "border", "align", "text"),
    [
        ("psnr", 0, "none", "RGB, no border cut off"),
        ("psnr_y", 4, "none", "Y of BT.601 YCbCr, 4 px border cut off"),
        ("nima", 4, "ecc", "RGB, shorter side resized to 299, centre 299x299, pyiqa's nima"),
        ("fid", 0, "ecc", "RGB, no border cut off, resized to 299x299"),
        ("lpips", 0, "ecc", "aligned to the ground truth"),
    ],
)
def test_variants(name: str, border: int, align: str, text: str) -> None:
    assert text in metric_variant(name, border, align)


def test_files(noise: Evaluation, tmp_path: Path) -> None:
    save_tables(noise, str(tmp_path))
    texts = [(tmp_path / "evaluation" / name).read_text() for name in FILES]
    assert texts == [markdown(noise), latex(noise), json_text(noise)]


class Kept(NullRecorder):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.files: list[str] = []

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.figures |= values

    def artifact(self, path: str, folder: str | None = None) -> None:
        self.files.append(Path(path).name)


def test_tracking_gets_means_differences_and_their_intervals(noise: Evaluation, tmp_path: Path) -> None:
    recorder, cfg = Kept(), Config(out=str(tmp_path))
    noise.save(cfg.out)
    record(cfg, noise, recorder)
    difference = noise.difference("adapted", "target", "psnr")
    assert difference is not None
    key = "target/adapted/psnr"
    assert recorder.figures[key] == noise.mean("adapted", "target", "psnr")
    found = tuple(recorder.figures[f"{key}.{name}"] for name in ("difference", "low", "high"))
    assert found == (difference.mean, difference.low, difference.high)
    assert recorder.figures["target/hq/niqe"] == noise.mean("hq", "target", "niqe")
    assert "target/baseline/psnr.low" not in recorder.figures
    assert sorted(recorder.files) == ["metrics.parquet", "summary.json", "table.md", "table.tex"]
