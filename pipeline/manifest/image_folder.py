"""Folders of images as sources of manifests."""

import fnmatch
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from pipeline import storage
from pipeline.errors import BuildError, printable
from pipeline.manifest.sources import Source

IMAGE_SUFFIXES: Final = (
    *(".apng", ".avif", ".avifs", ".bmp", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf"),
    *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""The suffixes of the formats that `images.decode` reads."""
_EXAMPLES: Final = 3
_OTHER_SUFFIX: Final = "with another suffix"


def from_folder(url: str, manifest_url: str, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Source:
    """Return one row per image below a folder, sorted by path. Globs match the path inside it (`*` matches `/` too).

    Images below the manifest's folder get paths relative to it. A file that cannot be an image, or cannot be named in
    a manifest, is left out and counted. BuildError if there is no image."""
    home = storage.parent(manifest_url).rstrip("/") + "/"
    images: list[str] = []
    left_out: dict[str, list[str]] = {}
    for file, size in storage.list_sizes(url).items():
        inside = storage.path_below(file, url)
        included = any(fnmatch.fnmatch(inside, glob) for glob in include) if include else not _is_hidden(inside)
        if not included or any(fnmatch.fnmatch(inside, glob) for glob in exclude):
            continue
        if reason := _reason_to_leave_out(inside, size, any_suffix=bool(include)):
            left_out.setdefault(reason, []).append(inside)
        else:
            images.append(file.removeprefix(home))
    notes = _notes(left_out)
    if not images:
        more = f"; {'; '.join(notes)}" if notes else ""
        raise BuildError(f"{storage.redact_url(url)}: the folder contains no image ({', '.join(IMAGE_SUFFIXES)}){more}")
    return Source(
        columns={"image": pa.string()}, rows=lambda: ({"image": image} for image in images), left_out=tuple(notes)
    )


def _reason_to_leave_out(path: str, size: int | None, *, any_suffix: bool) -> str | None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "with a name that is not UTF-8"
    if "::" in path:
        return "with :: in the name"
    if not any_suffix and not path.lower().endswith(IMAGE_SUFFIXES):
        return _OTHER_SUFFIX
    if size is None:
        return "that cannot be read"
    return None if size else "of 0 bytes"


def _notes(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a text per reason, with examples: `2 files of 0 bytes (a.png, b.png)`."""
    notes = []
    for reason, paths in left_out.items():
        suffixes = Counter(os.path.splitext(path)[1].lower() or posixpath.basename(path) for path in paths)
        examples = [name for name, _ in suffixes.most_common()] if reason == _OTHER_SUFFIX else list(paths)
        shown = ", ".join(map(printable, examples[:_EXAMPLES])) + ", ..." * (len(examples) > _EXAMPLES)
        notes.append(f"{len(paths):,} file{'s' * (len(paths) > 1)} {reason} ({shown})")
    return notes


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
