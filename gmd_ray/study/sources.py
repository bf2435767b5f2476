"""The pictures that a study compares: folders of results, or the pictures that an evaluation kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError, DataError, nearest
from gmd_ray.evaluation.items import spread
from gmd_ray.evaluation.results import load_evaluation
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import list_by_stem
from gmd_ray.text import printable, some

Loader = Callable[[], np.ndarray]
"""Reads one picture: uint8 RGB, (H, W, 3)."""
Methods = Mapping[str, Mapping[str, Loader]]
"""Method -> photo -> its picture; every method has the same photos."""
LONGEST_NAME = 60


def read_methods(folders: Sequence[str]) -> dict[str, dict[str, Loader]]:
    """List the pictures of `NAME=FOLDER` words; pictures of one photo have one path but for the extension.

    Raises:
        ConfigError: a word is not of that form, or a name or a folder comes twice.
        DataError: a folder cannot be listed.
    """
    methods: dict[str, dict[str, Loader]] = {}
    places: dict[str, str] = {}
    for word in folders:
        name, sign, folder = word.partition("=")
        if not sign or not name.strip() or not folder:
            raise ConfigError(f"{word!r}: give NAME=FOLDER, such as baseline=results/baseline")
        name = name.strip()
        if name in methods:
            raise ConfigError(f"{name}: named twice")
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"{name[:20]}...: a name of {len(name)} characters, and {LONGEST_NAME} is the most")
        same = [other for other, place in places.items() if place == os.path.realpath(folder)]
        if same:
            raise ConfigError(f"{same[0]}, {name}: both are {folder}; a study compares two folders")
        places[name] = os.path.realpath(folder)
        methods[name] = {stem: _from_file(file.uri) for stem, file in list_by_stem(folder).items()}
    return methods


def read_run(run: str, names: Sequence[str], dataset: str = "target") -> dict[str, dict[str, Loader]]:
    """Take pictures that the evaluation of a run kept: the middles of `evaluation.report_images` photos.

    These are the ones spread evenly over the test set. Pictures that are kept because their photos gained or lost most
    stay out, since a study of them would judge that choice.

    Args:
        run: the run directory.
        names: students of the evaluation, such as `baseline` and `adapted`.
        dataset: the test set, `target` or `source`.

    Raises:
        DataError: the run has no evaluation, or kept no pictures of that test set.
        ConfigError: there is no student of such a name, or the run has no `config.yaml`.
    """
    evaluation = load_evaluation(run)
    cfg = load_config([f"config={Path(run) / 'config.yaml'}"], check_paths=False)
    methods: dict[str, dict[str, Loader]] = {}
    pictured = set(evaluation.pictured(dataset))
    images = [image for image in spread(evaluation.images(dataset), cfg.evaluation.report_images) if image in pictured]
    if not images:
        raise DataError(f"{run}: its evaluation kept no pictures of the {dataset} test set; give NAME=FOLDER instead")
    for name in names:
        if name not in evaluation.students:
            raise ConfigError(f"--methods: no student {name!r} in {run}; {nearest(name, evaluation.students)}")
        pngs = {image: evaluation.picture(dataset, image, name) for image in images}
        methods[name] = {image: _from_bytes(png, image) for image, png in pngs.items() if png is not None}
    return methods


def check_methods(methods: Methods) -> list[str]:
    """The photos of a study, sorted.

    Raises:
        ConfigError: there are fewer than two methods.
        DataError: a photo lacks the picture of a method; the message names some.
    """
    if len(methods) < 2:
        raise ConfigError("a study compares two methods or more: give NAME=FOLDER for each, or --run RUN")
    photos = sorted(set().union(*methods.values()))
    for name, pictures in methods.items():
        missing = [printable(photo) for photo in photos if photo not in pictures]
        if missing:
            raise DataError(
                f"{name}: {len(missing)} of {len(photos)} photos have no picture of this method ({some(missing)}); "
                f"all methods need the same photos"
            )
    return photos


def _from_file(uri: str) -> Loader:
    return lambda: _decoded(read_file(uri), uri)


def _from_bytes(png: bytes, where: str) -> Loader:
    return lambda: _decoded(png, where)


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        return decode_8bit(data)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
