"""The site of a run by real requests, with a real student."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError
from gmd_ray.pairstore.store import PairStore
from gmd_ray.serving import pair_list
from gmd_ray.serving.pair_list import PER_PAGE, PairList
from gmd_ray.serving.run_site import RunSite
from gmd_ray.serving.server import PageServer, token_hash
from gmd_ray.verbs.pages.serve import run_site
from tests.evaluation.conftest import write_store
from tests.serving.asking import get, pixels, png, send
from tests.serving.conftest import HOSTILE, serving


@pytest.fixture
def server(run: Path) -> Iterator[PageServer]:
    with serving(run_site(str(run))) as running:
        yield running


def test_the_report_runs_its_own_script_as_a_stranger(server: PageServer, run: Path) -> None:
    status, body, headers = get(server, "/report.html")
    assert (status, body) == (200, (run / "report.html").read_bytes())
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in headers["Content-Security-Policy"]


def listed(page: bytes) -> list[tuple[str, str, str]]:
    """(id, state, reason) of each pair of a page."""
    text = page.decode()
    items = re.findall(r'<span class="id">(.*?)</span>.*?class="chip (\w+)"(.*?)</a>', text, re.DOTALL)
    reasons = [re.search(r'class="reason">(.*?)<', rest) for *_, rest in items]
    found = zip(items, reasons, strict=True)
    return [(unescape(name), state, unescape(reason[1]) if reason else "") for (name, state, _), reason in found]


def test_pairs_by_state_and_order(server: PageServer) -> None:
    name = HOSTILE.format
    expected = [
        (name(4), "accepted", ""),
        (name(0), "accepted", ""),
        (name(1), "rejected", "below 4.5"),
        (name(2), "rejected", "below 4.5"),
        (name(3), "failed", "read: DataError"),
    ]
    assert listed(get(server, "/pairs")[1]) == expected
    assert listed(get(server, "/pairs?order=worst")[1]) == [*expected[3::-1], expected[4]]
    assert listed(get(server, "/pairs?order=name")[1]) == sorted(expected)
    for state in ("accepted", "rejected", "failed"):
        assert listed(get(server, f"/pairs?state={state}")[1]) == [line for line in expected if line[1] == state]
    assert listed(get(server, "/pairs?find=%2304.PNG")[1]) == [expected[0]]
    for query in ("state=all", "order=up", "page=0", "page=-1", "page=x", "page=99999999999", "page=%C2%B2"):
        assert listed(get(server, f"/pairs?{query}")[1]) == expected
    assert listed(get(server, "/pairs?find=nothing")[1]) == []


def test_a_name_is_text_and_no_markup(server: PageServer) -> None:
    body = get(server, "/pairs")[1] + get(server, f"/pair?id={quote(HOSTILE.format(0))}")[1]
    assert b"<b>&" not in body
    assert b"&lt;b&gt;&amp;" in body
    hostile = quote('"><script>alert(1)</script>')
    assert b"<script>alert" not in get(server, f"/pairs?find={hostile}&state={hostile}&order={hostile}")[1]


def test_every_link_of_the_pages_leads_somewhere(server: PageServer) -> None:
    seen: set[str] = set()
    todo = {"/", "/pairs", f"/pair?id={quote(HOSTILE.format(0))}", f"/pair?id={quote(HOSTILE.format(3))}"}
    while todo - seen:
        path = (todo - seen).pop()
        seen.add(path)
        status, body, headers = get(server, path)
        assert status == 200, path
        if headers["Content-Type"].startswith("text/html") and path != "/report.html":
            for link in re.findall(r'(?:href|src)="([^"#]+)', body.decode()):
                link = unescape(link).removeprefix("./")
                todo |= {f"/{link}"} if not link.startswith("data:") else set()
    assert {"/run.css", "/run.js", "/report.html"} <= seen
    assert sum(path.startswith("/picture") for path in seen) > 10


def test_pictures_are_those_of_the_store(server: PageServer, run: Path) -> None:
    pair = HOSTILE.format(0)
    stored = PairList(PairStore(str(run / "pairs")), 4.5)
    row = stored.find(pair)
    assert row is not None
    for name in ("lq", "restored", "pseudo_target"):
        status, body, headers = get(server, f"/picture?of={name}&id={quote(pair)}")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert body == stored.columns(row, [name])[name]
        for _ in range(2):  # made, and held
            small = get(server, f"/picture?of={name}&size=small&id={quote(pair)}")
            assert (small[0], small[2]["Content-Type"]) == (200, "image/jpeg")
            assert np.abs(pixels(small[1]).astype(float) - pixels(body)).mean() < 10


@pytest.mark.parametrize(
    "path",
    [
        *("/picture", "/picture?of=lq", "/picture?of=lq&id=../config.yaml", "/picture?of=uri&id=PAIR", "/pair?id="),
        *("/picture?of=lq&id=FAILED", "/config.yaml", "/../config.yaml", "/%2e%2e/config.yaml", "/pairs/", "/restored"),
        *("/result?id=x&of=before", "/report.html/", "/run.css/../config.yaml", "/mlflow.db"),
    ],
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    path = path.replace("PAIR", quote(HOSTILE.format(0))).replace("FAILED", quote(HOSTILE.format(3)))
    assert get(server, path)[:2] == (404, b"There is nothing at this address.\n")


def test_pages_of_many_pairs(tmp_path: Path) -> None:
    write_store(tmp_path, [float(i) for i in range(2 * PER_PAGE + 1)])
    site = RunSite("many", tmp_path / "report.html", PairList(PairStore(str(tmp_path / "pairs")), 0.0), None)
    with serving(site) as server:
        pages = [listed(get(server, f"/pairs?page={number}")[1]) for number in (1, 2, 3, 4)]
        assert [len(page) for page in pages] == [PER_PAGE, PER_PAGE, 1, 1]
        assert [name for page in pages[:3] for name, *_ in page] == [
            f"{i:02d}.png" for i in range(2 * PER_PAGE, -1, -1)
        ]
        assert b'rel="next"' not in get(server, "/pairs?page=3")[1]
        assert get(server, "/report.html")[0] == 404
        assert get(server, "/")[0] == 200
        assert send(server, png())[0] == 404  # no adapted student, no drop zone


def test_a_pair_that_breaks_the_fidelity_bound_says_so(tmp_path: Path) -> None:
    write_store(tmp_path, [5.0, 5.0], fidelity=[30.0, 20.0])
    pairs = PairList(PairStore(str(tmp_path / "pairs")), 4.0, 25.0)
    assert [(row.state, row.reason) for row in pairs.rows().values()] == [
        ("accepted", ""),
        ("rejected", "psnr 20, below 25"),
    ]


def test_the_list_follows_a_run_that_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path, [5.0])
    pairs = PairList(PairStore(str(tmp_path / "pairs")), 4.0)
    assert list(pairs.rows()) == ["00.png"]
    rows = tmp_path / "pairs" / "rows"
    table = pq.read_table(rows / "part-0.parquet")
    more = table.set_column(table.schema.get_field_index("id"), "id", pa.array(["01.png"]))
    pq.write_table(more, rows / "part-1.parquet")
    assert list(pairs.rows()) == ["00.png"]  # held
    monkeypatch.setattr(pair_list, "HELD_S", 0.0)
    assert list(pairs.rows()) == ["00.png", "01.png"]


def test_with_a_token_no_path_is_open_without_it(run: Path) -> None:
    site = run_site(str(run), "secret-token")
    with serving(site) as server:
        for path in ("/", "/pairs", "/run.css", "/report.html", "/secret-toke/", "/secret-token", "//", "/%00/pairs"):
            assert get(server, path)[0] == 404
            assert send(server, png(), path)[0] == 404
        assert get(server, "/secret-token/")[0] == 200
        assert get(server, "/secret-token/run.css")[0] == 200
        assert send(server, png(), "/secret-token/restored")[0] == 200
        assert send(server, png())[0] == 404
    assert token_hash("secret-token") not in get_everything(run)


def get_everything(run: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in run.rglob("*.yaml"))


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run directory, as it holds no config\.yaml"):
        run_site(str(tmp_path))


def test_a_run_without_an_adapted_student_shows_the_rest(run: Path) -> None:
    (run / "finetune" / "adapted" / "student.safetensors").unlink()
    site = run_site(str(run))
    assert site.photos is None
    with serving(site) as server:
        assert b"has no adapted student yet" in get(server, "/")[1]
        assert get(server, "/pairs")[0] == 200


def test_the_command_makes_a_token_where_others_can_reach_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []

    def asked(server: PageServer, line: str) -> int:
        lines.append(line)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        path = line.rpartition(f":{server.port}")[2]
        found.append([get(server, each)[0] for each in ("/", path, f"{path}pairs")])
        server.shutdown()
        server.server_close()
        return 0

    found: list[list[int]] = []
    monkeypatch.setattr("gmd_ray.verbs.pages.serve.serving", asked)
    assert main(["serve", str(run), "--port", "0"]) == 0
    assert main(["serve", str(run), "--port", "0", "--host", "0.0.0.0"]) == 0
    assert re.fullmatch(r"run      http://127\.0\.0\.1:\d+/", lines[0])
    assert re.fullmatch(r"run      http://[^/:]+:\d+/[\w-]{32}/", lines[1])
    assert found == [[200, 200, 200], [404, 200, 200]]
    assert capsys.readouterr().out == ""
