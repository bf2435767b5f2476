"""Settings that are text are taken as typed; what is not text is told in one line; a mapping replaces a mapping."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gmd_ray.config.load import config_text, load_config, save_config
from gmd_ray.config.values import escaped
from gmd_ray.errors import ConfigError
from gmd_ray.images.sets.pairs import list_pairs

TYPED = [
    *("photo #1, sharp", "exp #1", "2024_05_01", "2024-05-01", "12:30:00", "007", "1e3", "1.10", "1_000", "0x1F", ".5"),
    *("true", "yes", "No", "off", "Null", "NULL", "~", "none", ".inf", ".nan", "-", "---", "...", "???", "=", "<<"),
    *("a: b, #c", "[x]", "{a}", "{}x4", "{a: 1}", "{{{{", "]", "}", ",", ":", "'quoted'", '"quoted"', "'", '"', "it's"),
    *("@home", "*star", "&anchor", "!tag", "!!int 5", "%percent", "`tick`", "|", ">", "? a", "- a", "# all of it"),
    *(" leading", "trailing ", "tab\t", "line\nbreak", "cr\rlf", "\x1b[2J", "\x85", "\u2028", "\ufeff", "Grüße"),
    *("back\\slash", "C:\\photos\\new", "\\", "\\\\", "\\n", "$", "$HOME", "{$}", "a$b{c}", "%20", "a=b=c", "", " "),
    *("nul\x00", "e\u0301", "\udcff", "写真 😀", "x" * 10_000, "{" * 3000, "[" * 3000 + "]" * 3000),
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED, ids=lambda text: ascii(text)[:20])
def test_text_arrives_and_comes_back_from_a_saved_file(text: str, tmp_path: Path) -> None:
    cfg = load_config(
        [
            f"teacher.prompt={text}",
            f"tracking.model={text}",
            f"tracking.experiment={text}",
            f"student.pool.labels.zone={text}",
            f"plan.currency={text}",
            f"ray.address={text}",
        ]
    )
    assert cfg.teacher.prompt == cfg.tracking.model == cfg.tracking.experiment == cfg.plan.currency == text
    assert cfg.ray.address == text
    assert cfg.student.pool.labels == {"zone": text}
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config([f"config={tmp_path / 'config.yaml'}"]) == cfg


@pytest.mark.parametrize("seed", range(3))
def test_any_text_comes_back(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    parts = ["#", " ", ": ", "- ", "{", "}", "[", "]", "'", '"', "\\", "\n", "\t", "${", "$", "null", "~", "0", "e",
             ",", "=", "@", "*", "&", "!", "%", "|", ">", "?", "é", "\x85", "\u2028", "a", "b c"]  # fmt: skip
    for _ in range(8):
        texts = ["".join(draw.choices(parts, k=draw.randint(1, 9))) for _ in range(4)]
        typed = [re.sub(r"^(\\*null)$", r"\\\1", escaped(text)) for text in texts]
        keys = ("teacher.prompt", "teacher.inversion_prompt", "tracking.model", "plan.currency")
        cfg = load_config([f"{key}={text}" for key, text in zip(keys, typed, strict=True)])
        got = [cfg.teacher.prompt, cfg.teacher.inversion_prompt, cfg.tracking.model, cfg.plan.currency]
        assert got == texts
        save_config(cfg, tmp_path / "config.yaml")
        assert load_config([f"config={tmp_path / 'config.yaml'}"]) == cfg


@pytest.mark.parametrize(
    "name",
    ["exp #1", "exp #2", "2024_05_01", "007", "1e3", "true", "a: b", "[x]", "run?1", "é", "end ", "{}", "???", "-"],
)
def test_each_name_is_a_run_directory_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config([f"out={name}"]).out == f"{tmp_path}/{name}"
    assert load_config([f"out=runs/{name}"]).out == f"{tmp_path}/runs/{name}"
    (tmp_path / name).mkdir()
    assert load_config([f"target.path={name}", f"evaluation.weights.niqe={name}"]).target.path == f"{tmp_path}/{name}"


def test_null_and_references_have_a_meaning_and_a_backslash_takes_it_away() -> None:
    cfg = load_config(["target.path=null", "teacher.prompt=${seed} of ${tracking.model}", "seed=3"])
    assert (cfg.target.path, cfg.teacher.prompt) == (None, "3 of gmd-student")
    for typed, text in [
        (r"\null", "null"), (r"\\null", r"\null"), (r"\${seed}", "${seed}"), (r"\\${seed}", "\\0"),
        (r"\\\${seed}", r"\${seed}"), (r"a \${b} c", "a ${b} c"), (r"\$x", r"\$x"), ("nulls", "nulls"),
    ]:  # fmt: skip
        assert load_config([f"teacher.prompt={typed}"]).teacher.prompt == text, typed
    cfg = load_config([r"student.factory=null", r"tracking.model=\null", r"evaluation.weights.niqe=s3://a/\${b}"])
    assert (cfg.student.factory, cfg.tracking.model) == (None, "null")
    assert cfg.evaluation.weights == {"niqe": "s3://a/${b}"}


@pytest.mark.parametrize(
    "text", [text for text in TYPED if "\x00" not in text and text.isprintable() and len(text) < 50]
)
def test_a_shell_gives_what_stands_in_quotes(text: str) -> None:
    quoted = "'" + text.replace("'", "'\\''") + "'"
    typed = subprocess.run(["bash", "-c", f'printf "%s" teacher.prompt={quoted}'], capture_output=True, check=True)
    assert load_config([typed.stdout.decode()]).teacher.prompt == text


# In a file it is YAML, and text is what stands there.
@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("2024_05_01", "2024_05_01"), ("2024-05-01", "2024-05-01"), ("1.10", "1.10"), ("007", "007"), ("yes", "yes"),
        ("True", "True"), ("1e3", "1e3"), ("0x1F", "0x1F"), ("12:30:00", "12:30:00"), (".inf", ".inf"),
        ("1_000", "1_000"),
        ("'null'", "null"), ('"a # b"', "a # b"), ("'{}x4'", "{}x4"), (r"'\${a}'", "${a}"), ("???", "???"), ("=", "="),
        ("!!str 010", "010"), ("|-\n    a\n    b", "a\nb"),
    ],
)  # fmt: skip
def test_text_in_a_file_is_what_stands_there(written: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"tracking:\n  model: {written}\nstudent: {{pool: {{labels: {{a: zone}}}}}}\n")
    assert load_config([f"config={file}"]).tracking.model == text
    file.write_text("controls: [source_only]\nevaluation: {metrics: [psnr, 1.10, no]}\n")
    assert load_config([f"config={file}"]).evaluation.metrics == ["psnr", "1.10", "no"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tracking: {model: [a]}", "tracking.model=['a'] must be text; quote it"),
        ("source: {lq_template: {}}", "source.lq_template={} must be text; quote it"),
        ("tracking: {model: !odd 5}", "tracking.model=5 holds a tag of YAML (`!`); quote it"),
        ("tracking: {model: }", "tracking.model must be text, not null"),
        ("source: {lq_template: {}x4}", "not YAML"),
        ("teacher: {prompt: *x}", "not YAML (found undefined alias 'x'"),
        ("seed: 1\nseed: 2\n", "seed is set twice"),
        ("source: {degradation_args: {a: 1, a: 2}}", "a is set twice"),
        ("pretrain: {arguments: {a: {b: 1, b: 2}}}", "b is set twice"),
        ("student: {pool: {labels: {a: x, a: y}}}", "a is set twice"),
        ("training: {steps: many}", "training.steps=many must be a whole number"),
        ("training: {steps: 1:30}", "training.steps=1:30 must be a whole number"),
        ("training: {lr: 2,5}", "no setting training.5"),
        ("training: {flip: maybe}", "training.flip=maybe must be true or false"),
        ("? [a]\n: b\n", "a key is a list or mapping"),
        ("teacher: {prompt: " + "{" * 3000 + "}" * 3000 + "}", "nested too deeply"),
        ("a: &a [*a]", "no setting a"),
        ("evaluation: {online: &a [*a]}", "recursive node"),
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_says_something_else_is_one_line(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config([f"config={file}"])
    assert str(caught.value).startswith(f"config={file}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=1_000", 1000), ("training.steps=010", 10), ("training.steps=0x10", 16),
        ("training.steps=+5", 5),
        ("training.lr=1e-4", 1e-4), ("training.lr=1_0.5", 10.5), ("training.lr=3", 3.0), ("training.lr=1.E-3", 1e-3),
        ("training.milestones=[010, 2_0]", [10, 20]), ("training.flip=off", False), ("training.flip=1", True),
        ("source.limit=null", None), ("source.limit=~", None), ("source.limit=${seed}7", 7),
        ("training.max_failures=-1", -1),
        ("training.betas=[.5, 1e-1]", (0.5, 0.1)), ("evaluation.metrics=['a b', c]", ["a b", "c"]),
        ("evaluation.online=[baseline]", ["baseline"]), ("student.pool.resources={a: 1}", {"a": 1.0}),
        ("pretrain.arguments={a: '', b: [6], c: 1e-3, d: 2024-05-01}",
         {"a": "", "b": [6], "c": 1e-3, "d": "2024-05-01"}),
        ("training.schedule=multistep", "multistep"),
    ],
)  # fmt: skip
def test_what_is_not_text_keeps_yaml(override: str, value: Any) -> None:
    more = ["training.milestones=[3]"] if "schedule" in override else []
    more += ["pretrain.architecture=X"] if "pretrain" in override else []
    node: Any = load_config([override, *more])
    for name in override.partition("=")[0].split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("training.steps=many", "training.steps=many: training.steps must be a whole number"),
        ("training.steps=1e3", "training.steps=1e3: training.steps must be a whole number"),
        ("training.steps=true", "training.steps=true: training.steps must be a whole number"),
        ("training.steps=", "training.steps=: training.steps must be a whole number, not null"),
        ("training.steps=[1]", "training.steps=[1]: training.steps must be a whole number"),
        ("training.lr=fast", "training.lr=fast: training.lr must be a number"),
        ("training.lr=true", "training.lr=true: training.lr must be a number"),
        ("training.flip=2", "training.flip=2: training.flip must be true or false"),
        ("training.betas=0.9", "training.betas=0.9: training.betas must be 2 numbers, as training.betas=[0.1, 0.2]"),
        ("training.milestones=[a]", "training.milestones=[a]: training.milestones[0]=a must be a whole number"),
        ("student.pool.resources={a: x}", "student.pool.resources={a: x}: student.pool.resources.a=x must be a number"),
        ("teacher.steps.x=3", "teacher.steps.x=3: no setting teacher.steps.x; did you mean 'teacher.steps'?"),
        ("tracking.gates=[3]", "tracking.gates[0]=3 must be a mapping of metric, dataset, against, min_gain"),
        ("tracking.gates=[{min_gain: big}]", "tracking.gates[0].min_gain=big must be a number"),
        ("out=null", "out=null: out must be text, not null"),
        ("training.steps=${seeed}", r"training.steps=${seeed}: Interpolation key 'seeed' not found; \${ is text"),
        ("training.steps=${tracking.model}", "training.steps: training.steps=gmd-student must be a whole number"),
        ("training.steps=" + "{" * 3000, "nested too deeply to be read"),
        ("pretrain.arguments=" + "[" * 3000 + "]" * 3000, "nested too deeply to be read"),
        ("evaluation.online=[", "cannot be read (expected the node content, but found '<stream end>', line 1)"),
        ("evaluation.online=a\x07b", "evaluation.online=a\x07b: cannot be read"),
        ("source.degradation_args={a: 1, a: 2}", "a is set twice"),
        ("out=${" + "${" * 3000, "cannot be read"),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_that_says_what_would(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_a_mapping_replaces_the_one_before_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "source: {degradation: noise25, degradation_args: {noise_sigma: [0, 55]}}\n"
        "pretrain: {architecture: A, arguments: {a: 1, b: {c: 2, d: 3}}}\n"
        "evaluation: {weights: {niqe: s3://a/n, psnr: s3://a/p}}\n"
        "student: {pool: {resources: {x: 1}, labels: {a.b/c: d}}}\n"
    )
    given = f"config={file}"
    cfg = load_config([given])
    assert cfg.source.degradation_args == {"noise_sigma": [0, 55]}
    for override, value in [
        ("source.degradation_args={}", {}),
        ("source.degradation_args={sigma: 3}", {"sigma": 3}),
        ("source.degradation_args.scale=2", {"noise_sigma": [0, 55], "scale": 2}),
        ("source.degradation_args.noise_sigma=[1, 2]", {"noise_sigma": [1, 2]}),
    ]:
        assert load_config([given, override]).source.degradation_args == value
    two = load_config([given, "source.degradation_args={a: 1}", "source.degradation_args.b=2"])
    assert two.source.degradation_args == {"a": 1, "b": 2}
    arguments = load_config([given, "pretrain.arguments.b.c=9", "pretrain.arguments.e.f=4"]).pretrain.arguments
    assert arguments == {"a": 1, "b": {"c": 9, "d": 3}, "e": {"f": 4}}
    assert load_config([given, "pretrain.arguments={b: {}}"]).pretrain.arguments == {"b": {}}
    assert load_config([given, "evaluation.weights={}"]).evaluation.weights == {}
    assert load_config([given, "evaluation.weights.niqe=s3://b"]).evaluation.weights["psnr"] == "s3://a/p"
    pool = load_config([given, "student.pool.labels.ray.io/zone=1.10", "student.pool.resources={}"]).student.pool
    assert (pool.labels, pool.resources) == ({"a.b/c": "d", "ray.io/zone": "1.10"}, {})
    # A file's mapping replaces a preset's, while sections are joined.
    preset = tmp_path / "preset.yaml"
    preset.write_text("source: {gray: true, degradation_args: {scale: 2}}\n")
    both = load_config([f"preset={preset}", given]).source
    assert (both.gray, both.degradation_args) == (True, {"noise_sigma": [0, 55]})


def test_a_template_as_the_readme_has_it_pairs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hq/0001.png", "lq/0001x4.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    source = load_config(["source.hq=hq", "source.lq=lq", "source.lq_template={}x4"]).source
    (pair,) = list_pairs(str(source.hq), source.lq, source.lq_template)
    assert (pair.hq, pair.lq) == (f"{tmp_path}/hq/0001.png", f"{tmp_path}/lq/0001x4.png")


def test_a_folder_that_looks_like_a_published_set_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmd_ray.config.places import folder_or_set
    from gmd_ray.images.sets.inventory import check_sets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b/c@2x").mkdir(parents=True)
    cfg = load_config(["target.path=a/b/c@2x", "data.root=."])
    assert cfg.target.path == f"{tmp_path}/a/b/c@2x"
    check_sets(cfg)
    assert folder_or_set("a/b/c@2x") == f"{tmp_path}/a/b/c@2x"
    assert folder_or_set("reds/train/blur@x") == "reds/train/blur@x"
    assert load_config(["target.path=a/b/d@2x"], check_paths=False).target.path == "a/b/d@2x"


def test_a_saved_file_is_yaml_that_others_read(tmp_path: Path) -> None:
    cfg = load_config([r"teacher.prompt=\${a}: é", "tracking.model=1.10"])
    read = yaml.safe_load(config_text(cfg))
    assert (read["teacher"]["prompt"], read["tracking"]["model"]) == (r"\${a}: é", "1.10")


def test_names_keep_the_options_of_a_url_at_its_end() -> None:
    from gmd_ray.config.places import above, below, name_of

    url = "s3://bucket/run/finetune?endpoint_override=http://host:9000/x"
    file = below(url, "adapted/curve.jsonl")
    assert file == "s3://bucket/run/finetune/adapted/curve.jsonl?endpoint_override=http://host:9000/x"
    assert above(above(file)) == url
    assert (name_of(url), name_of(file), name_of("/a/what?/")) == ("finetune", "curve.jsonl", "what?")
    assert above("/a/what?/b.json") == "/a/what?"
