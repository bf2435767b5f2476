"""Names of restored photos, each with the ending of a format that can hold the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from gmd_ray.errors import ConfigError
from gmd_ray.images.files.photo import FORMATS, LARGEST_SIDE
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.text import printable

AUTO = "auto"
"""Value of `ext` that keeps each photo's own format where possible."""
INSTEAD = ".png"
"""Ending used with `ext=auto` for photos whose own format cannot be written or cannot hold the result."""

_SHOWN = 3


@dataclass(frozen=True)
class Naming:
    """The user's options for the names of results.

    Raises:
        ConfigError: an option is unusable.
    """

    suffix: str = ""
    """Text appended to the stem, such as `_restored`."""
    ext: str = AUTO
    """Ending of the results, with or without dot, in any case; `auto` keeps each photo's own."""
    ending: str | None = field(init=False)
    """The ending with its dot, in lower case; None for auto."""

    def __post_init__(self) -> None:
        if any(c in self.suffix for c in "/\\\0") or not self.suffix.isprintable():
            raise ConfigError(f"--suffix {printable(self.suffix)}: is put behind a file's stem; leave out / and \\")
        ext = self.ext.lower().removeprefix(".")
        if ext != AUTO and f".{ext}" not in FORMATS:
            known = ", ".join(known.removeprefix(".") for known in FORMATS)
            raise ConfigError(f"--ext {printable(self.ext) or repr('')}: known: auto, {known}")
        object.__setattr__(self, "ending", None if ext == AUTO else f".{ext}")


def name_results(
    ids: Sequence[str], naming: Naming, scale: int = 1, sizes: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, str]:
    """Choose the name of each result.

    With `auto`, a result becomes a PNG if the photo's own format cannot be written (GIF, AVIF) or cannot be that large
    (WebP). Then `x.gif` beside `x.png` becomes `x.gif.png`.

    Args:
        ids: paths of the photos relative to their folder.
        scale: side of a result divided by the side of its photo.
        sizes: (height, width) of the photos, as far as they are known.

    Returns:
        id -> path of the result relative to the output folder.

    Raises:
        ConfigError: two results have one name, or the format of `--ext` cannot hold a result.
        DataError: an id would lead out of the output folder.
    """
    names: dict[str, str] = {}
    changed, too_large = set(), []
    for key in ids:
        path = PurePosixPath(safe_relative(key))
        size = None if sizes is None else sizes.get(key)
        ending = path.suffix if naming.ending is None else naming.ending
        known = ending.lower() in FORMATS
        if not known or (size is not None and not _holds(ending, size, scale)):
            if naming.ending is not None:
                too_large.append(key)
            ending = INSTEAD
            changed.add(key)
        names[key] = str(path.with_name(f"{path.stem}{naming.suffix}{ending}"))
    if too_large:
        kind = FORMATS[str(naming.ending)]
        raise ConfigError(
            f"--ext {naming.ext}: {_listed(too_large)} would be more than {LARGEST_SIDE[kind]} pixels a side at "
            f"x{scale}, which {kind} cannot hold; give --ext png, or leave it out"
        )
    counts = Counter(names.values())
    for key in changed:
        if counts[names[key]] > 1:
            path = PurePosixPath(key)
            names[key] = str(path.with_name(f"{path.name}{naming.suffix}{INSTEAD}"))
    target, n = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    if n > 1:
        alike = [key for key, name in names.items() if name == target]
        mend = "rename one of them" if naming.ending is None else "restore them apart, or leave out --ext"
        raise ConfigError(f"{_listed(alike)} would all be written to {printable(target)}: {mend}")
    return names


def _holds(ending: str, size: tuple[int, int], scale: int) -> bool:
    return max(size) * scale <= LARGEST_SIDE.get(FORMATS[ending.lower()], max(size) * scale)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(printable(key) for key in keys[:_SHOWN]) + more
