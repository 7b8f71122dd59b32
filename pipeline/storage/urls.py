"""Local paths and URLs as text: schemes, joining, and what may be shown of them."""

import os
from typing import Final

from pipeline.errors import StorageError

SCHEMES: Final[dict[str, str]] = {
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
"""URL schemes, and fsspec's name for what serves them."""


def is_local(url: str) -> bool:
    return split_url(url)[0] == "file"


def join(url: str, *parts: str) -> str:
    """A path below a folder's URL: `join("s3://b/run", "data", "x.parquet")`."""
    return "/".join((url.rstrip("/"), *(part.strip("/") for part in parts)))


def parent(url: str) -> str:
    """The folder that holds a file or folder."""
    if "://" not in url:
        return os.path.dirname(os.path.abspath(os.path.expanduser(url)))
    return url.rstrip("/").rpartition("/")[0]


def redact_url(url: str) -> str:
    """A URL as it may stand in a message: without a user, a password or a signed query."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def split_url(url: str) -> tuple[str, str]:
    """The scheme (fsspec's name) and what follows it; a path without a scheme is a local one."""
    if "\0" in url or "::" in url:
        raise StorageError(f"{redact_url(url)!r}: no path or URL that can be used")
    if "://" not in url:
        return "file", url
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "file", "memory"))
        raise StorageError(f"{redact_url(url)}: cannot use {scheme}:// URLs; use a local path or one of {known}")
    return SCHEMES[scheme.lower()], rest
