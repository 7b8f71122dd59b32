"""The fsspec filesystem that serves a path or URL."""

import os
from functools import lru_cache
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage.retry import storage_errors
from pipeline.storage.s3 import S3_CLIENT_CONFIG, disable_expect_header, parse_timestamps_fast
from pipeline.storage.s3_clock import follow_server_clock
from pipeline.storage.urls import redact_url, split_url

_PACKAGES: Final = {"gs": "gcsfs", "abfs": "adlfs", "s3": "s3fs", "hf": "huggingface_hub"}
"""The package that fsspec needs for each scheme."""


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec filesystem that serves a path or URL, and the absolute path inside it (no trailing slash).

    StorageError if the URL is not usable or the package for its scheme is not installed."""
    scheme, rest = split_url(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = _filesystem(scheme, endpoint if scheme == "s3" else None)
    if scheme == "file":
        return filesystem, os.path.abspath(os.path.expanduser(rest)) if rest else os.getcwd()
    path = str(filesystem._strip_protocol(url)).rstrip("/")
    if not path.strip("/"):
        raise StorageError(f"{redact_url(url)}: the URL names no bucket or folder")
    return filesystem, path


@lru_cache
def _filesystem(scheme: str, endpoint: str | None) -> fsspec.AbstractFileSystem:
    try:
        if scheme != "s3":
            return fsspec.filesystem(scheme)
        filesystem = fsspec.filesystem(
            "s3", endpoint_url=endpoint, use_listings_cache=False, config_kwargs=S3_CLIENT_CONFIG
        )
        filesystem.retries = 1  # pipeline.storage.retry retries
        with storage_errors("s3://"):
            disable_expect_header(filesystem)
            parse_timestamps_fast(filesystem)
            follow_server_clock(filesystem)
    except ImportError as error:
        raise StorageError(
            f"{scheme}:// needs a package that is not installed: pip install {_PACKAGES[scheme]}"
        ) from error
    return filesystem


def url_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return the URL of a path inside a filesystem; a local path stays as it is."""
    return path if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(path)


def path_below(url: str, folder: str) -> str:
    """Return the path, inside a folder, of a file that `list_files` found below it: `shelf/a.png`."""
    filesystem, root = locate(folder)
    path = url if isinstance(filesystem, LocalFileSystem) else str(filesystem._strip_protocol(url))
    return path.removeprefix(root.rstrip("/") + "/")


def absolute(url: str) -> str:
    """Return the absolute path of a local path or `file://` URL; the URL of a file elsewhere."""
    return url_of(*locate(url))
