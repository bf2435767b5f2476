"""Download the weight files of metrics, ahead of a run or as its first step; nothing else in gmd_ray downloads them."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.request
from collections.abc import Iterable, Sequence
from email.message import Message
from pathlib import Path
from typing import IO

from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.progress import Progress
from gmd_ray.quality.catalogue import metric_info
from gmd_ray.quality.missing_weights import default_directory, file_fault
from gmd_ray.quality.weight_files import FILES, REPOSITORIES, WeightFile

log = logging.getLogger("gmd_ray")

SILENCE_S = 30.0
"""Seconds without a byte after which a connection is given up."""
CHUNK = 1 << 20
"""Bytes that are read at once."""


class FetchError(GmdError):
    """Weight files that could not be downloaded."""


def fetch(metrics: Sequence[str], to: str | None = None) -> list[Path]:
    """Download the files of these metrics that are not there yet; a second call downloads nothing.

    Args:
        metrics: names as `gmd-ray ls metrics` gives them.
        to: weights directory, made where it does not exist; None is torch's hub directory, where runs look by default.

    Returns:
        every file of these metrics, sorted.

    Raises:
        ConfigError: a metric that does not exist, or whose files gmd_ray cannot list; nothing is downloaded then.
        FetchError: files that could not be downloaded; the others are in place.
    """
    for name in metrics:
        metric_info(name, "fetch")
        if name in REPOSITORIES:
            lines = " and ".join(f"`hf download {repository}`" for repository in REPOSITORIES[name])
            raise ConfigError(
                f"fetch: {name} loads whole repositories of the model hub, which gmd_ray does not fetch; run {lines} "
                "with HF_HOME as on the machine that will measure, and set HF_HUB_OFFLINE=1 there"
            )
        if name not in FILES:
            raise ConfigError(f"fetch: the weight files of {name} are not known; leave it out")
    directory = Path(to).expanduser().absolute() if to is not None else default_directory()
    files = {file.place(directory): file for name in metrics for file in FILES[name]}
    download_all((file, place) for place, file in sorted(files.items()))
    return sorted(files)


def download_all(files: Iterable[tuple[WeightFile, Path]]) -> None:
    """Download each file to its place, unless it is there.

    Raises:
        FetchError: after the last file, a line for all that failed.
    """
    failures = []
    for file, place in files:
        if file_fault(place) is None:
            continue
        try:
            download(file, place)
        except FetchError as error:
            failures.append(str(error))
    if failures:
        raise FetchError("; ".join(failures))


def download(file: WeightFile, place: Path) -> None:
    """Download one file, check it, and only then put it in place.

    The size must be the one that the server announced. The SHA-256 must be that of the table and, where the model hub
    stores the file, the one that the hub states.

    Raises:
        FetchError: no connection, an answer that is not the file, or a disk that cannot hold it.
    """
    log.info("downloading %s to %s", file.url, place)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        opener, redirects = _opener()
        with opener.open(file.url, timeout=SILENCE_S) as answer, partial.open("wb") as output:
            size = int(answer.headers.get("Content-Length") or 0)
            received, sha256 = _copy(answer, output, place.name, size)
            stated = [sha for headers in (*redirects, answer.headers) if (sha := _hub_sha256(headers))]
        if size and received != size:
            raise FetchError(f"{file.url}: the connection broke after {received} of {size} bytes; try again")
        for expected in [sha for sha in (file.sha256, *stated) if sha]:
            if not sha256.startswith(expected):
                raise FetchError(
                    f"{file.url}: its SHA-256 is {sha256[:16]}..., not {expected[:16]}...; the server has another file "
                    "or it was damaged on the way, try again"
                )
        if (fault := file_fault(partial)) is not None:
            raise FetchError(f"{file.url}: {fault}")
        os.replace(partial, place)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchError(
            f"{file.url}: cannot be downloaded to {place}: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: IO[bytes], output: IO[bytes], label: str, size: int) -> tuple[int, str]:
    """Copy with a progress line; returns the bytes and the SHA-256 of what came, on disk by then."""
    digest, received, shown = hashlib.sha256(), 0, 0
    with Progress(f"downloading {label}", max(1, size // 1_000_000), unit="MB") as progress:
        while chunk := source.read(CHUNK):
            output.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            progress.update(received // 1_000_000 - shown)
            shown = received // 1_000_000
    output.flush()
    os.fsync(output.fileno())
    return received, digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and keep the headers of each: the model hub states a file's SHA-256 in the redirect to it."""

    def __init__(self) -> None:
        self.headers: list[Message] = []

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.headers.append(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _opener() -> tuple[urllib.request.OpenerDirector, list[Message]]:
    """An opener with the environment's proxies, and the headers of the redirects that it will follow."""
    redirects = _Redirects()
    return urllib.request.build_opener(redirects), redirects.headers


def _hub_sha256(headers: Message) -> str | None:
    """The SHA-256 of a large file on the model hub; small files have another kind of tag."""
    tag = (headers.get("X-Linked-ETag") or "").strip('"').lower()
    return tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None
