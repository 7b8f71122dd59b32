"""Local paths and URLs as text: schemes, joining, redaction."""

import os
from typing import Final

from pipeline.errors import StorageError

_SCHEMES: Final[dict[str, str]] = {
    "file": "file",
    "local": "file",
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


def is_local(url: str) -> bool:
    """Return True for a path or a `file://` URL. StorageError if the scheme is unknown."""
    return split_url(url)[0] == "file"


def join(url: str, *parts: str) -> str:
    """Return the URL of a path below a folder: `join("s3://b/run", "data", "x.parquet")`."""
    return "/".join((url.rstrip("/"), *(part.strip("/") for part in parts)))


def parent(url: str) -> str:
    """Return the folder that contains a file or folder."""
    if "://" not in url:
        return os.path.dirname(os.path.abspath(os.path.expanduser(url)))
    return url.rstrip("/").rpartition("/")[0]


def redact_url(url: str) -> str:
    """Return a URL without its user name, password and query, so that it can appear in a message."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def split_url(url: str) -> tuple[str, str]:
    """Return the scheme (fsspec's name for it) and the rest; a path without a scheme is local.

    StorageError if the scheme is unknown, or for chained URLs (`a::b`) and null bytes."""
    if "\0" in url or "::" in url:
        raise StorageError(f"{redact_url(url)!r}: not a usable path or URL")
    if "://" not in url:
        return "file", url
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "file", "memory"))
        raise StorageError(f"{redact_url(url)}: cannot use {scheme}:// URLs; use a local path or one of {known}")
    return _SCHEMES[scheme.lower()], rest
