"""Files that are both learned from and tested on, which would flatter the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gmd_ray.config import Config
from gmd_ray.errors import DataError, GmdError
from gmd_ray.hashing import content_digest
from gmd_ray.images.headers import ImageHeader
from gmd_ray.images.listing import list_images, read_file
from gmd_ray.images.lmdb_store import split_uri
from gmd_ray.images.sets.listed import SOURCE, SOURCE_TEST, TARGET, TARGET_TEST
from gmd_ray.planning.data_sets import DataSet, Side
from gmd_ray.planning.findings import ERROR, WARNING, Findings
from gmd_ray.storage import open_filesystem
from gmd_ray.text import some

_THREADS = 16
_SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end that are compared before whole files are."""

_Item = tuple[str, str, int]
"""(id, URI, size in bytes) of a file."""


def check_overlap(
    found: Findings, cfg: Config, sets: Mapping[str, DataSet], *, generates: bool, evaluates: bool
) -> None:
    """Find target photos among the target test images, and source images among the source test images.

    Files are compared by their bytes, so that re-encoded copies go unnoticed.

    Args:
        generates: the run learns from the target's photos.
        evaluates: the run measures on the test sets, so that the target's overlap is an error, unless
            `evaluation.allow_overlap` is set.
    """
    e = cfg.evaluation
    if cfg.target.path and e.target_lq and (generates or evaluates):
        photos = sets[TARGET].lq if TARGET in sets else _listed("target.path", cfg.target.path, cfg.target.limit)
        tests = sets[TARGET_TEST].lq if TARGET_TEST in sets else _listed("evaluation.target_lq", e.target_lq, e.limit)
        same = same_files(photos, tests) if photos is not None and tests is not None else []
        if same and tests is not None:
            mend = (
                "; allowed by evaluation.allow_overlap"
                if e.allow_overlap
                else ": what is learned from cannot measure; hold them out of target.path, or, to measure on the very "
                "photos that are adapted to, set evaluation.allow_overlap=true"
            )
            found.say(
                ERROR if evaluates and not e.allow_overlap else WARNING,
                "overlap",
                "evaluation.target_lq",
                f"evaluation.target_lq: {len(same):,} of its {len(tests.files):,} images are photos of target.path "
                f"({some(same)}){mend}",
            )
    if SOURCE in sets and SOURCE_TEST in sets:
        clean, tests = sets[SOURCE].hq, sets[SOURCE_TEST].hq
        assert clean is not None
        assert tests is not None
        same = same_files(clean, tests)
        if same:
            found.warn(
                "overlap",
                "evaluation.source_hq",
                f"evaluation.source_hq: {len(same):,} of its {len(tests.files):,} images are among source.hq "
                f"({some(same)}): what is kept of the source is measured on what is trained on",
            )


def same_files(ours: Side, theirs: Side) -> list[str]:
    """`theirs = ours` for each file of the second side that is, byte for byte, one of the first.

    Only files of a size that both sides have are opened, and only those that agree in three short samples are read.
    """
    places = {file.uri: file.id for file in ours.files}
    found = {file.id: places[file.uri] for file in theirs.files if file.uri in places}
    sizes = {header.bytes for header in ours.headers} & {header.bytes for header in theirs.headers} - {None}
    left, right = _of_sizes(ours, sizes), [item for item in _of_sizes(theirs, sizes) if item[0] not in found]
    for digest in (_sampled, _whole):
        known, asked = _digests(digest, left if right else []), _digests(digest, right)
        both = set(known.values()) & set(asked.values()) - {None}
        left = [item for item in known if known[item] in both]
        right = [item for item in asked if asked[item] in both]
    owners = {known[item]: item[0] for item in reversed(left)}
    found |= {item[0]: owners[asked[item]] for item in right}
    return [theirs if theirs == ours else f"{theirs} is {ours}" for theirs, ours in sorted(found.items())]


def _listed(key: str, place: str, limit: int | None) -> Side | None:
    """A set that the run does not read, as its listing tells it; None where it cannot be listed."""
    try:
        files = tuple(list_images(place, limit))
    except GmdError:
        return None
    return Side(key, place, files, tuple(ImageHeader(None, bytes=file.size) for file in files))


def _of_sizes(side: Side, sizes: set[int | None]) -> list[_Item]:
    """The files of these sizes."""
    return [
        (file.id, file.uri, header.bytes)
        for file, header in zip(side.files, side.headers, strict=True)
        if header.bytes is not None and header.bytes in sizes
    ]


def _digests(digest: Callable[[str, int], str | None], items: Sequence[_Item]) -> dict[_Item, str | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(items, pool.map(lambda item: digest(item[1], item[2]), items), strict=True))


def _sampled(uri: str, size: int) -> str | None:
    try:
        if split_uri(uri) is not None or size <= 3 * _SAMPLE:
            return content_digest(read_file(uri))
        filesystem, path = open_filesystem(uri)
        with filesystem.open_input_file(path) as file:
            parts = []
            for at in (0, (size - _SAMPLE) // 2, size - _SAMPLE):
                file.seek(at)
                parts.append(file.read(_SAMPLE))
        return content_digest(size.to_bytes(8, "big") + b"".join(parts))
    except (OSError, DataError):
        return None


def _whole(uri: str, size: int) -> str | None:
    try:
        return content_digest(read_file(uri))
    except (OSError, DataError):
        return None
