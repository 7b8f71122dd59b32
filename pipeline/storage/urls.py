"""Local paths and URLs as text: schemes, joining, redaction."""

import os
import re
from typing import Final
from urllib.parse import unquote

from pipeline.errors import StorageError, printable

_SCHEMES: Final[dict[str, str]] = {
    "memory": "memory",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "abfs",
    "abfs": "abfs",
    "abfss": "abfs",
    "hf": "hf",
}
"""URL schemes, and fsspec's name for each."""


_LOCAL_URL: Final = re.compile(r"(?:file|local):(?://(?:localhost(?=/))?|(?=/))", re.IGNORECASE)
"""The start of a local file's URL (RFC 8089): `file://` and perhaps `localhost`, or as Hadoop writes it, `file:/`."""


def is_url(url: str) -> bool:
    """Return True if the text has a scheme, so that it is not a plain path."""
    return "://" in url or _LOCAL_URL.match(url) is not None


def is_local(url: str) -> bool:
    """Return True for a path or a `file://` URL. StorageError if the scheme is unknown."""
    return split_url(url)[0] == "file"


def join(url: str, *parts: str) -> str:
    """Return the URL of a path below a folder: `join("s3://b/run", "data", "x.parquet")`.

    Below a `file://` URL it is a plain path, in which nothing is percent-encoded."""
    return "/".join((_plain(url).rstrip("/"), *(part.strip("/") for part in parts)))


def parent(url: str) -> str:
    """Return the folder that contains a file or folder."""
    url = _plain(url)
    if not is_url(url):
        return os.path.dirname(os.path.abspath(os.path.expanduser(url)))
    return url.rstrip("/").rpartition("/")[0]


def redact_url(url: str) -> str:
    """Return a URL without its user name, password and query, as one line that can appear in a message."""
    url = printable(url)
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def split_url(url: str) -> tuple[str, str]:
    """Return the scheme (fsspec's name for it) and the rest; a path without a scheme is local.

    StorageError if the scheme is unknown, or for chained URLs (`a::b`) and null bytes."""
    plain = _plain(url)
    if "\0" in plain or "::" in url:
        raise StorageError(f"{redact_url(url)!r}: not a usable path or URL")
    if "://" not in plain or _LOCAL_URL.match(url):
        return "file", plain
    scheme, _, rest = plain.partition("://")
    if scheme.lower() not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "file", "memory"))
        raise StorageError(f"{redact_url(url)}: cannot use {scheme}:// URLs; use a local path or one of {known}")
    return _SCHEMES[scheme.lower()], rest


def _plain(url: str) -> str:
    """Return the path of a local file's URL; other URLs and paths as they are.

    The path is decoded (`%20` is a space), unless only the file with the name as it stands exists: fsspec and Hadoop
    write such URLs without encoding them."""
    if not (match := _LOCAL_URL.match(url)):
        return url
    path = url[match.end() :]
    decoded = unquote(path, errors="surrogateescape")
    if "\0" not in decoded and os.path.exists(path) and not os.path.exists(decoded):
        return path
    return decoded
