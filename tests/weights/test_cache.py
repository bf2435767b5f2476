"""The cache of a node: what is copied, what is found again, and what is refused."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from gmd_ray.errors import ConfigError, ModelError, StorageError
from gmd_ray.weights import cache, is_model_folder, is_stored, node_copy, stored_model, verified_copy
from gmd_ray.weights.copies import SPARE
from tests.weights.test_listing import make_model, sha256sum


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process has listed."""
    monkeypatch.setattr(cache, "_listed", {})


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every store unreachable for a new process."""

    def fail(url: str) -> None:
        raise StorageError(f"{url}: cannot be listed: no route to host")

    new_process(monkeypatch)
    monkeypatch.setattr(cache, "list_model", fail)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_path_on_this_machine_is_used_as_it_is(tmp_path: Path, node: Path) -> None:
    folder = make_model(tmp_path / "flux")
    assert node_copy(str(folder)) == folder
    assert node_copy("owner/model") == Path("owner/model")
    assert not node.exists()
    assert (is_model_folder(str(folder)), is_model_folder(str(folder / "model_index.json"))) == (True, False)
    assert not is_stored(None)


def test_a_folder_and_a_file_are_copied_under_their_own_names(tmp_path: Path, node: Path) -> None:
    folder = make_model(tmp_path / "FLUX.1-dev")
    copy = node_copy(f"file://{folder}")
    assert copy.name == "FLUX.1-dev"
    assert copy.is_relative_to(node)
    assert contents(copy) == contents(folder)
    file = node_copy(f"file://{folder}/model_index.json")
    assert (file.name, file.read_text()) == ("model_index.json", "{}")
    assert is_model_folder(f"file://{folder}")
    assert not list(node.glob("*.parts")), "nothing is left of the downloads"


def test_the_list_of_checksums_is_no_part_of_the_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "flux")
    plain = contents(folder)
    (folder / "SHA256SUMS").write_text(sha256sum(folder, "model_index.json"))
    assert contents(node_copy(f"file://{folder}")) == plain


def test_only_what_is_asked_for_is_copied_and_the_rest_later(tmp_path: Path) -> None:
    url = f"file://{make_model(tmp_path / 'flux')}"
    assert set(contents(node_copy(url, ["*.json"]))) == {"model_index.json"}
    assert set(contents(node_copy(url))) == {"model_index.json", "vae/weights.safetensors"}


def test_a_shared_folder_is_copied_where_the_node_asks_for_it(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path / "shared" / "flux")
    other = make_model(tmp_path / "shared-too" / "flux")
    monkeypatch.setenv("GMD_RAY_COPY_FROM", f"/nowhere:{tmp_path / 'shared'}")
    copy = node_copy(str(folder))
    assert copy.is_relative_to(node)
    assert contents(copy) == contents(folder)
    assert node_copy(str(other)) == other


def test_a_file_cut_short_in_the_cache_is_named_and_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{make_model(tmp_path / 'flux')}"
    damaged = node_copy(url) / "vae" / "weights.safetensors"
    damaged.write_bytes(b"0123")
    assert (node_copy(url) / "vae" / "weights.safetensors").read_bytes() == b"0123456789"
    assert f"{damaged} has 4 bytes instead of 10; it is downloaded again" in caplog.text


@pytest.mark.parametrize("sums", [True, False], ids=["with checksums", "without"])
def test_a_flipped_bit_in_the_cache_is_found_when_the_copy_is_verified(
    tmp_path: Path, sums: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(tmp_path / "flux")
    if sums:
        (folder / "SHA256SUMS").write_text(sha256sum(folder, "model_index.json", "vae/weights.safetensors"))
    url = f"file://{folder}"
    copy, damaged = verified_copy(url)
    assert damaged == []
    (copy / "vae" / "weights.safetensors").write_bytes(b"0123456788")
    assert verified_copy(url) == (copy, ["vae/weights.safetensors"])
    assert (copy / "vae" / "weights.safetensors").read_bytes() == b"0123456789"
    assert "vae/weights.safetensors was damaged in the cache" in caplog.text


def test_bytes_that_do_not_fit_their_checksum_are_refused_by_name(tmp_path: Path, node: Path) -> None:
    folder = make_model(tmp_path / "flux")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  vae/weights.safetensors\n")
    with pytest.raises(ModelError, match=r"flux/vae/weights\.safetensors: its SHA-256 is 84d89877f0d4041e\.{3}, not 0"):
        node_copy(f"file://{folder}")
    assert not list(node.rglob("weights.safetensors"))


def test_a_model_that_changes_gets_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process sees one version; the next one sees the new one, and the files of the first stay."""
    file = tmp_path / "student.pth"
    file.write_bytes(b"first")
    old = node_copy(f"file://{file}")
    file.write_bytes(b"second")
    assert node_copy(f"file://{file}") == old
    new_process(monkeypatch)
    new = node_copy(f"file://{file}")
    assert (old.read_bytes(), new.read_bytes()) == (b"first", b"second")


def test_a_store_that_is_away_does_not_matter_where_a_copy_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{make_model(tmp_path / 'flux')}"
    copy = node_copy(url, ["*.json"])
    unplug(monkeypatch)
    assert node_copy(url, ["*.json"]) == copy
    assert "no route to host; its copy in" in caplog.text
    with pytest.raises(StorageError, match=r"no route to host; .* lacks vae/weights\.safetensors of it"):
        node_copy(url)
    with pytest.raises(StorageError, match=r"no copy of it lies in .*cache/weights either: `gmd-ray fetch`"):
        node_copy(f"{url}-other")


def test_a_failed_listing_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "student.pth"
    with pytest.raises(ModelError, match="no such file or folder"):
        node_copy(f"file://{file}")
    file.write_bytes(b"here now")
    assert node_copy(f"file://{file}").read_bytes() == b"here now"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{make_model(tmp_path / 'flux')}"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, SPARE + 11))
    with pytest.raises(ConfigError, match=r"1\.2e-08 GB are to be fetched, and .* has room for 1\.1e-08; delete"):
        node_copy(url)
    assert not list(node.rglob("*.json"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, SPARE + 12))
    assert len(contents(node_copy(url))) == 2


def test_a_cache_that_can_only_be_read_serves_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="gmd-") as place:
        folder, home = make_model(Path(place) / "flux"), Path(place) / "cache"
        monkeypatch.setenv("GMD_RAY_CACHE", str(home))
        copy = node_copy(f"file://{folder}", ["*.json"])
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        new_process(monkeypatch)
        before = sorted(Path(place).rglob("*"))
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert not os.access(home, os.W_OK, effective_ids=True)
            assert node_copy(f"file://{folder}", ["*.json"]) == copy
            unplug(monkeypatch)
            assert node_copy(f"file://{folder}", ["*.json"]) == copy
            monkeypatch.undo()
            monkeypatch.setenv("GMD_RAY_CACHE", str(home))
            new_process(monkeypatch)
            with pytest.raises(ConfigError, match=r"lacks vae/weights\.safetensors of it and cannot be written"):
                node_copy(f"file://{folder}")
            assert sorted(Path(place).rglob("*")) == before
        finally:
            if root:
                os.seteuid(0)
            for path in (Path(place), *(entry for entry in Path(place).rglob("*") if entry.is_dir())):
                path.chmod(0o755)


def test_secrets_and_options_of_a_url_are_not_kept(tmp_path: Path, node: Path) -> None:
    from gmd_ray.weights.copies import pointer_of

    plain = pointer_of(node, "s3://bucket/flux")
    assert pointer_of(node, "s3://key:secret@bucket/flux/?endpoint_override=http://localhost") == plain
    assert pointer_of(node, "s3://bucket/flux2") != plain
    assert stored_model(f"file://{make_model(tmp_path / 'flux')}").name == "flux"
