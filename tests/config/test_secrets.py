"""Secrets are hidden from terminals, logs, reports and run records; saved settings keep references to them."""

from __future__ import annotations

import html
import json
import pickle
import stat
import traceback
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest
import yaml

from gmd_ray.config import Config, secrets
from gmd_ray.config.load import config_text, load_config, resolved, save_config
from gmd_ray.config.secrets import digested, is_redacted, known, learn, redact, remember
from gmd_ray.errors import ConfigError, GmdError, InterruptedRunError, StorageError
from gmd_ray.pairstore import run_settings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://a:b@host/x and s3://bucket/k@v", "at https://***@host/x and s3://bucket/k@v"),
        ("http://me:p@ss@host:5000", "http://***@host:5000"),
        ("http://me:p/w@host/x", "http://***@host/x"),
        ("http://me:p/w@x/y@host:80/x", "http://***@host:80/x"),
        ("http://me:12/34p@host", "http://me:12/34p@host"),  # a port follows: no client takes it for a password
        ("postgresql+psycopg://u:p@db/x", "postgresql+psycopg://***@db/x"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("'memory://u:p@x/y'", "'memory://***@x/y'"),
        ("http://host:8080/photos@2x/a.png", "http://host:8080/photos@2x/a.png"),
        ("s3://b/x?region=eu&secret_key=abc/d+e=&scheme=http", "s3://b/x?region=eu&secret_key=***&scheme=http"),
        ("https://h/x?sv=1&sig=a%2Fb%3D&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("https://h/x?SIG=a", "https://h/x?SIG=***"),
        ("https://h/x?X-Amz-Credential=a%2Fb&X-Amz-Signature=c&X-Amz-Date=d", "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***&X-Amz-Date=d"),
        ("https://h/x?X-Amz-Security-Token=c#top", "https://h/x?X-Amz-Security-Token=***"),
        ("https://h/x?X-Goog-Signature=c", "https://h/x?X-Goog-Signature=***"),
        ("https://h/x?AWSAccessKeyId=c&Signature=d", "https://h/x?AWSAccessKeyId=***&Signature=***"),
        ("https://h/x?token=t&key=k&secret=s&password=p&pwd=q", "https://h/x?token=***&key=***&secret=***&password=***&pwd=***"),
        ("https://h/x?access_key=a&api_key=b&apikey=c&auth=d&access_token=e", "https://h/x?access_key=***&api_key=***&apikey=***&auth=***&access_token=***"),
        ("page https://h/x?a=1&amp;sig=s&amp;b=2 end", "page https://h/x?a=1&amp;sig=***&amp;b=2 end"),
        ('{"u": "https://h/x?a=1\\u0026sig=s"}', '{"u": "https://h/x?a=1\\u0026sig=***"}'),
        ("(see https://h/x?sig=s)", "(see https://h/x?sig=***"),
        ("s3://b/x?endpoint_override=localhost%3A9000&region=us", "s3://b/x?endpoint_override=localhost%3A9000&region=us"),
        ("https://h/x?design=a&signal=b", "https://h/x?design=a&signal=b"),
        ("mail a@b, then c:d@e", "mail a@b, then c:d@e"),
        ("sigma=3; key=4", "sigma=3; key=4"),
    ],
)  # fmt: skip
def test_urls_tell_no_secrets(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown, "again changes nothing"


@pytest.mark.parametrize(
    "url",
    ["memory://me:hunter2@x/y", "http://me:hun ter2'@x", "http://me:a/hunter2@x", "http://me:a@hunter2@x",
     "http://me:%68unter2@x", "https://h/x?a=1&sig=hunter2 x&b=1", "https://h/x?token=%68unter2", "out=http://me:hunter2@h"],
)  # fmt: skip
def test_a_secret_of_a_url_is_hidden_wherever_it_turns_up(url: str) -> None:
    learn(url)
    for told in (url, f"cannot open {url}: no host", *(f"login {secret} failed" for secret in known())):
        assert "hunter2" not in redact(told)
        assert "%68unter2" not in redact(told)
    assert redact("the host x is away") == "the host x is away"


def test_urls_without_secrets_teach_nothing() -> None:
    for url in (
        "s3://bucket/k@v/photos",
        "http://host:5000/photos@2x",
        "sqlite:////a/b@c.db",
        "runs/a@b",
        "x?sig=hunter2",
    ):
        learn(url)
    assert known() == ()


@pytest.mark.parametrize("secret", ["s3cr3t", "a b/c+d%e", 'quo"te\\', "<tag>&amp;", "Grüße", "two\nlines", "x" * 500])
def test_a_known_secret_is_hidden_in_every_form(secret: str) -> None:
    remember(secret)
    forms = [secret, quote(secret), quote(secret, safe=""), json.dumps(secret), repr(secret), html.escape(secret)]
    for form in [*forms, json.dumps(secret, ensure_ascii=True), " ".join(secret.split())]:
        assert redact(f"before {form} after").startswith("before ")
        assert redact(f"before {form} after").replace('"', "").replace("'", "") == "before *** after"


def test_what_is_too_short_or_stands_everywhere_is_no_secret() -> None:
    for word in ("", "1", "eu", "abc", "    ", "true", "None", "auto"):
        remember(word)
    assert known() == ()


def test_pictures_of_a_page_stay_as_they_are() -> None:
    remember("abcd")
    picture = '<img src="data:image/png;base64,AAabcd+/abcd==">'
    assert redact(f"abcd {picture} abcd") == f"*** {picture} ***"


def test_the_longer_of_two_secrets_goes_first() -> None:
    remember("hunter")
    remember("hunter2000")
    assert redact("hunter2000 hunter") == "*** ***"


SECRET_VARIABLES = {
    "HF_TOKEN": "planted-hub", "HUGGING_FACE_HUB_TOKEN": "planted-hub-2", "AWS_SECRET_ACCESS_KEY": "planted/aws+key",
    "AWS_SESSION_TOKEN": "planted-session", "MLFLOW_TRACKING_PASSWORD": "planted-mlflow",
    "RAY_AUTH_TOKEN": "planted-ray", "GRAFANA_PASSWORD": "planted-grafana", "PGPASSWORD": "planted-postgres",
    "WANDB_API_KEY": "planted-wandb",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=planted==", "RAY_JOB_HEADERS": '{"X-A": "Bearer planted-header"}',
    "MLFLOW_TRACKING_URI": "http://me:planted-uri@host:5000", "https_proxy": "http://me:planted-proxy@host:1",
}  # fmt: skip


def test_secrets_of_the_environment_are_hidden_though_no_setting_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRET_VARIABLES.items():
        monkeypatch.setenv(name, value)
    for value in (
        "planted-hub", "planted-hub-2", "planted%2Faws%2Bkey", "planted-session", "planted-mlflow", "planted-ray",
        "planted-grafana", "planted-postgres", "planted-wandb", "AccountKey=planted==", "planted-header",
        "planted-uri", "planted-proxy",
    ):  # fmt: skip
        assert redact(f"401 for {value} at host") == "401 for *** at host", value
    assert known() == (), "they are not handed to other processes, which have an environment of their own"
    # A setting with the same text is saved as a reference, and found again.
    cfg = load_config(
        [
            "pretrain.architecture=Net",
            "pretrain.arguments.token=planted-hub",
            "teacher.prompt=as planted-grafana has it",
        ]
    )
    saved = yaml.safe_load(config_text(cfg))
    assert saved["pretrain"]["arguments"]["token"] == "${oc.env:HF_TOKEN}"
    assert saved["teacher"]["prompt"] == "as ${oc.env:GRAFANA_PASSWORD} has it"


def test_variables_without_a_secret_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = {
        "HF_TOKEN_PATH": "/home/me/token", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
        "GPG_KEY": "A035C8C19219BA82", "AWS_ACCESS_KEY_ID": "an-identifier", "RAY_AUTH_MODE": "token-mode",
        "AWS_ENDPOINT_URL": "http://host:7070/abcdefg",
        "S3_PASSWORD": "testing",  # too short: the word may stand anywhere
        "RAY_JOB_HEADERS": "no JSON, planted-header",
    }  # fmt: skip
    for name, value in harmless.items():
        monkeypatch.setenv(name, value)
    for value in harmless.values():
        assert redact(f"see {value}") == f"see {value}"


def test_variables_that_are_set_later_are_found_by_another_look(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact("planted-hub") == "planted-hub"
    monkeypatch.setenv("HF_TOKEN", "planted-hub")
    secrets.learn_environment()
    assert redact("planted-hub") == "***"
    monkeypatch.delenv("HF_TOKEN")
    secrets.learn_environment()
    remember("planted-uri")
    assert redact("planted-hub planted-uri") == "planted-hub ***"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in {
        "GMD_PW": "hunter2/@x", "GMD_PROMPT": "a secret prompt", "GMD_STEPS": "77", "GMD_DIR": str(tmp_path / "photos"),
        "GMD_LITERAL": "${out} \\${x}", "GMD_SHORT": "7",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "photos").mkdir()
    return tmp_path


def test_values_of_the_environment_stay_references_in_saved_settings(environment: Path) -> None:
    given = {
        "tracking.uri": "http://me:${oc.env:GMD_PW}@host:5000",
        "teacher.prompt": "${oc.env:GMD_PROMPT}, sharp",
        "teacher.inversion_prompt": "${oc.env:GMD_LITERAL}",
        "training.steps": "${oc.env:GMD_STEPS}",
        "target.path": "${oc.env:GMD_DIR}",
        "out": "${oc.env:GMD_DIR}/run${oc.env:GMD_SHORT}",
        "evaluation.weights.niqe": "${oc.env:GMD_DIR}",
        "student.pool.labels.zone": "${oc.env:GMD_NOWHERE,eu}",
        "pretrain.architecture": "Net",
        "pretrain.arguments.token": "${oc.env:GMD_PROMPT}",
        "tracking.experiment": "${teacher.prompt}",
    }
    cfg = load_config([f"{key}={value}" for key, value in given.items()])
    assert cfg.tracking.uri == "http://me:hunter2/@x@host:5000"
    assert (cfg.teacher.prompt, cfg.training.steps) == ("a secret prompt, sharp", 77)
    assert cfg.teacher.inversion_prompt == "${out} \\${x}"
    assert (cfg.target.path, cfg.out) == (f"{environment}/photos", f"{environment}/photos/run7")
    assert cfg.student.pool.labels == {"zone": "eu"}
    saved = yaml.safe_load(config_text(cfg))
    for key, text in given.items():
        node = saved
        for name in key.split("."):
            node = node[name]
        assert node == ("eu" if "NOWHERE" in text else text), key
    save_config(cfg, environment / "config.yaml")
    assert load_config([f"config={environment / 'config.yaml'}"]) == cfg
    secrets.forget()
    assert load_config([f"config={environment / 'config.yaml'}"]) == cfg, "in a new process too"
    shown = json.dumps(resolved(cfg)) + config_text(cfg)
    for secret in ("hunter2", "secret prompt", str(environment)):
        assert secret not in shown
        assert secret not in redact(f"{cfg.tracking.uri} {cfg.teacher.prompt} {cfg.target.path}")
    assert redact(cfg.teacher.prompt) == "***, sharp"
    assert redact(f"{cfg.out}/report.html") == "***/run7/report.html"


def test_saved_settings_resolve_anew(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(
        load_config(["teacher.prompt=${oc.env:GMD_PROMPT}", "source.hq=${oc.env:GMD_DIR}"]), environment / "c.yaml"
    )
    monkeypatch.setenv("GMD_PROMPT", "another")
    assert load_config([f"config={environment / 'c.yaml'}"]).teacher.prompt == "another"
    monkeypatch.delenv("GMD_PROMPT")
    with pytest.raises(ConfigError, match=r"^teacher\.prompt=\$\{oc\.env:GMD_PROMPT\}: .*'GMD_PROMPT' not found"):
        load_config([f"config={environment / 'c.yaml'}"])


def test_the_same_text_typed_elsewhere_is_no_way_out(environment: Path) -> None:
    cfg = load_config(
        ["teacher.prompt=${oc.env:GMD_PROMPT}", r"tracking.model=\${x} a secret prompt \\",
         f"out={environment}/photos/r", "target.path=${oc.env:GMD_DIR}"]
    )  # fmt: skip
    text = config_text(cfg)
    assert "secret prompt" not in text
    assert str(environment) not in text
    (environment / "c.yaml").write_text(text)
    assert load_config([f"config={environment / 'c.yaml'}"]) == cfg


def test_saved_settings_are_their_owners_and_hold_no_password(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("an old one, for all to read")
    file.chmod(0o644)
    cfg = load_config(
        ["tracking.uri=http://me:hunter2@host", "target.path=https://h/p?sig=hunter2&a=1", "out=memory://u:p w@x"]
    )
    save_config(cfg, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"], "nothing half written is left"
    assert "hunter2" not in file.read_text()
    assert "p w" not in file.read_text()
    # What was taken out is asked for, and not opened as it stands there.
    with pytest.raises(ConfigError) as caught:
        load_config([f"config={file}"])
    assert str(caught.value).startswith("out=memory://***@x: *** stands for a secret")
    again = ["tracking.uri=http://me:hunter2@host", "target.path=https://h/p?sig=hunter2&a=1", "out=memory://u:p w@x"]
    assert load_config([f"config={file}", *again]) == cfg
    assert is_redacted("https://h/p?sig=***&a=1")
    assert not is_redacted("runs/***")


def test_a_store_knows_its_settings_again_without_their_secrets(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(prompt: str) -> tuple[Config, dict[str, object]]:
        monkeypatch.setenv("GMD_PROMPT", prompt)
        cfg = load_config(
            ["teacher.prompt=${oc.env:GMD_PROMPT}", "target.path=s3://me:hunter2@b/x?secret_key=hunter2",
             "student.path=${oc.env:GMD_DIR}"]
        )  # fmt: skip
        return cfg, run_settings.relevant(cfg)

    cfg, first = made("a secret prompt")
    told = json.dumps([first, run_settings.places(cfg)])
    for secret in ("secret prompt", "hunter2", str(environment)):
        assert secret not in told
    assert made("a secret prompt")[1] == first
    changed = made("another prompt")[1]
    assert changed["teacher.prompt"] != first["teacher.prompt"], "another prompt is another setting"
    assert run_settings.relevant(Config()) == run_settings.relevant(load_config([]))
    assert digested("nothing hidden") == "nothing hidden"


def test_errors_tell_no_secrets_in_any_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray logs the traceback of an error in a worker by itself."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/aws+key")
    for kind in (ConfigError, StorageError, InterruptedRunError):
        try:
            raise kind("s3://me:hunter2@bucket/x?secret_key=hunter2: cannot be opened with planted/aws+key")
        except GmdError as error:
            sent = pickle.loads(pickle.dumps(error))
            for found in (error, sent):
                assert str(found) == "s3://***@bucket/x?secret_key=*** cannot be opened with ***"
                assert "hunter2" not in traceback.format_exception(found)[-1]


def test_rows_hold_no_secrets() -> None:
    from gmd_ray.generation.io_stages import without_secrets
    from gmd_ray.pairstore.schema import PAIR_SCHEMA

    uris = ["s3://me:hunter2@b/a.png?secret_key=hunter2", "/mnt/planted-folder/b.png", None]
    rows = [{"id": str(i), "uri": uri, "error": uri and f"{uri}: torn"} for i, uri in enumerate(uris)]
    table = without_secrets(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), ("/mnt/planted-folder",))
    assert table.schema == PAIR_SCHEMA
    assert table["uri"].to_pylist() == ["s3://***@b/a.png?secret_key=***", "***/b.png", None]
    assert table["error"].to_pylist() == ["s3://***@b/a.png?secret_key=*** torn", "***/b.png: torn", None]
    assert table["id"].to_pylist() == ["0", "1", "2"]
