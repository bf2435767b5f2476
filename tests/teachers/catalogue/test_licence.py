"""The licence class of a teacher: what each file says, and what counts where they disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmd_ray.config import TeacherConfig
from gmd_ray.teachers.catalogue.known import FLUX1, KLEIN_4B, KLEIN_9B
from gmd_ray.teachers.catalogue.licence import Licence, directory_licence, teacher_licence

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
DEV = "FLUX.1 [dev] Non-Commercial License \nBlack Forest Labs, Inc. is pleased to make available the weights\n"


def card(**head: object) -> str:
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()) + "\n---\n\n# A model\n"


def written(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def config(network: dict, **more: object) -> str:
    return json.dumps({**network, **more})


@pytest.mark.parametrize(
    ("files", "kind", "source"),
    [
        ({"README.md": card(license="apache-2.0")}, "commercial", "README.md: license: apache-2.0"),
        ({"README.md": card(license=["mit"])}, "commercial", "README.md: license: mit"),
        ({"README.md": card(license="openrail++")}, "commercial", "README.md: license: openrail++"),
        ({"README.md": card(license="creativeml-openrail-m")}, "commercial", "creativeml-openrail-m"),
        ({"README.md": card(license="cc-by-nc-4.0")}, "non-commercial", "README.md: license: cc-by-nc-4.0"),
        (
            {"README.md": card(license="other", license_name="flux-1-dev-non-commercial-license")},
            "non-commercial",
            "README.md: license: other, license_name: flux-1-dev-non-commercial-license",
        ),
        ({"README.md": card(license="other", license_name="mine")}, "unknown", "README.md: license: other"),
        ({"LICENSE": APACHE}, "commercial", "LICENSE: apache-2.0"),
        ({"LICENSE.md": DEV}, "non-commercial", "LICENSE.md: FLUX.1 [dev] Non-Commercial License"),
        ({"LICENSE": "All rights reserved.\n"}, "unknown", "LICENSE: All rights reserved."),
        ({"README.md": card(license="other"), "LICENSE": APACHE}, "commercial", "LICENSE: apache-2.0"),
        ({}, "unknown", "no README.md with a license, and no LICENSE, in it"),
        ({"README.md": "no head at all"}, "unknown", "no README.md with a license, and no LICENSE, in it"),
        ({"README.md": "---\na: [\n---\n"}, "unknown", "no README.md with a license, and no LICENSE, in it"),
    ],
)
def test_what_the_files_of_a_directory_say(tmp_path: Path, files: dict[str, str], kind: str, source: str) -> None:
    found = directory_licence(written(tmp_path, files))
    assert found.kind == kind
    assert found.source.startswith(source) or source in found.source


@pytest.mark.parametrize(
    ("files", "source"),
    [
        # A card with a licence and the name of another: the hub has such cards.
        (
            {"README.md": card(license="mit", license_name="flux-1-dev-non-commercial-license")},
            "license_name: flux-1-dev-non-commercial-license",
        ),
        ({"README.md": card(license="apache-2.0"), "LICENSE.md": DEV}, "LICENSE.md"),
        ({"README.md": card(license="apache-2.0", base_model="black-forest-labs/FLUX.1-dev")}, "base_model"),
        # A mirror of FLUX.1-dev under apache-2.0: the hub has those too.
        ({"README.md": card(license="apache-2.0"), "transformer/config.json": config(FLUX1)}, "layout of FLUX.1-dev"),
        ({"README.md": card(license="mit"), "transformer/config.json": config(KLEIN_9B)}, "the layout of FLUX.2-klein"),
        (
            {"transformer/config.json": config({}, _name_or_path="../checkpoints/flux-dev/transformer")},
            "_name_or_path: ../checkpoints/flux-dev/transformer",
        ),
        (
            {"transformer/config.json": config({}, _name_or_path="black-forest-labs/FLUX.2-dev")},
            "_name_or_path: black-forest-labs/FLUX.2-dev",
        ),
    ],
)  # fmt: skip
def test_what_forbids_counts_more_than_what_allows(tmp_path: Path, files: dict[str, str], source: str) -> None:
    found = directory_licence(written(tmp_path, files))
    assert found.kind == "non-commercial"
    assert source in found.source


@pytest.mark.parametrize("network", [KLEIN_4B, {**FLUX1, "guidance_embeds": False}, {**FLUX1, "num_single_layers": 8}])
def test_a_layout_allows_nothing(tmp_path: Path, network: dict) -> None:
    """Whoever trains such a network further may put it under another licence."""
    written(tmp_path, {"transformer/config.json": config(network)})
    assert directory_licence(tmp_path).kind == "unknown"
    written(tmp_path, {"README.md": card(license="apache-2.0")})
    assert directory_licence(tmp_path).kind == "commercial"


@pytest.mark.parametrize(
    ("settings", "kind", "source"),
    [
        ({"path": "black-forest-labs/FLUX.1-dev"}, "non-commercial", "LICENSE-FLUX1-dev"),
        ({"path": "black-forest-labs/FLUX.2-klein-base-4B"}, "commercial", "apache-2.0, https://"),
        ({"path": "black-forest-labs/FLUX.1-dev", "licence": "commercial"}, "commercial", "teacher.licence"),
        ({"method": "mine:make", "path": "x/y"}, "unknown", "is a plugin; say it with teacher.licence"),
        ({}, "unknown", "teacher.path is not set"),
    ],
)
def test_the_teacher_of_the_settings(settings: dict, kind: str, source: str) -> None:
    found = teacher_licence(TeacherConfig(**settings))
    assert found.kind == kind
    assert source in found.source
    assert str(found) == f"{found.kind} ({found.source})"


def test_an_unknown_hub_id_without_a_network_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = teacher_licence(TeacherConfig(path="somebody/their-model"))
    assert found == Licence("unknown", "no model card of somebody/their-model in reach")


def test_a_snapshot_in_the_cache_is_known_by_its_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "3de623f"
    snapshot.mkdir(parents=True)
    assert "LICENSE-FLUX1-dev" in directory_licence(snapshot).source
    plain = tmp_path / "FLUX.2-klein-base-4B"
    plain.mkdir()
    assert directory_licence(plain).kind == "unknown", "anybody may call a folder so"
