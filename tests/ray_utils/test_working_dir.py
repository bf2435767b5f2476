"""The part of a checkout that travels with a job, compared with the files that Ray packs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import _zip_files

from gmd_ray.errors import ConfigError
from gmd_ray.ray_utils import working_dir
from gmd_ray.ray_utils.working_dir import find_checkout, pack

FILES = [
    "gmd_ray/cli.py", "gmd_ray/demo/weights.bin", "gmd_ray/__pycache__/cli.pyc", "jobs/adapt.py", "pyproject.toml",
    "tests/test_x.py", ".git/config", ".env", "runs/a/pairs.parquet", "configs/mine.yaml", "configs/other.yaml",
    "odd [name]!/#x.txt", "team/module.py",
]  # fmt: skip
ALWAYS = {"gmd_ray/cli.py", "gmd_ray/demo/weights.bin", "jobs/adapt.py", "pyproject.toml"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for number, name in enumerate(FILES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number + 1))
    return tmp_path


def sent(folder: Path, include: list[str], exclude: list[str]) -> tuple[set[str], int]:
    """The files that Ray packs, and the size that `pack` says."""
    packed = pack(folder, include, exclude)
    target = folder.parent / f"{folder.name}.zip"
    target.unlink(missing_ok=True)
    _zip_files(str(folder), packed.excludes, str(target), include_gitignore=True, include_parent_dir=False)
    with zipfile.ZipFile(target) as file:
        names = {info.filename for info in file.infolist() if not info.is_dir()}
    return names, packed.size


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ([], [], ALWAYS),
        (["configs/mine.yaml", "team"], [], ALWAYS | {"configs/mine.yaml", "team/module.py"}),
        (["odd [name]!"], [], ALWAYS | {"odd [name]!/#x.txt"}),
        ([], ["gmd_ray/demo"], ALWAYS - {"gmd_ray/demo/weights.bin"}),
        (["."], [], set(FILES) - {"gmd_ray/__pycache__/cli.pyc", ".git/config"}),
    ],
)
def test_what_travels(checkout: Path, include: list[str], exclude: list[str], names: set[str]) -> None:
    found, size = sent(checkout, include, exclude)
    assert found == names
    assert size == sum((checkout / name).stat().st_size for name in names)


def test_too_much_names_the_largest(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "gmd_ray" / "big.safetensors").write_bytes(bytes(3 * 1024**2))
    monkeypatch.setattr(working_dir, "LIMIT", 2 * 1024**2)
    with pytest.raises(
        ConfigError, match=r"3 MiB would travel .* 2 MiB may.*--exclude: gmd_ray/big.safetensors \(3 MiB"
    ):
        pack(checkout)
    assert pack(checkout, exclude=["gmd_ray/big.safetensors"]).size < 1000


@pytest.mark.parametrize(("name", "told"), [("../x.yaml", "lies outside"), ("nothing.yaml", "no such file")])
def test_what_cannot_travel(checkout: Path, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        pack(checkout, [name])


def test_the_checkout_is_found(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    assert find_checkout() == checkout
    monkeypatch.chdir(checkout.parent)
    assert find_checkout() == Path(__file__).parents[2]
    with pytest.raises(ConfigError, match="no such folder"):
        find_checkout(str(checkout / "none"))
