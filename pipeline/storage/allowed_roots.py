"""The folders from which a manifest's pictures may be read."""

import os
import posixpath
from urllib.parse import urlsplit

from pipeline.errors import StorageError
from pipeline.storage.filesystem import locate
from pipeline.storage.urls import is_local, join, parent, redact_url, split_url


class AllowedRoots:
    """The folders from which a manifest's pictures may be read: its own, and those that the run was given."""

    def __init__(self, manifest: str, allow_roots: tuple[str, ...] = ()) -> None:
        self.base = manifest if not _looks_like_file(manifest) else parent(manifest)
        self.roots = tuple(canonical_location(root) for root in (self.base, *allow_roots))

    def resolve(self, reference: str) -> str:
        """The URL (or real local path) that a manifest's reference means; StorageError where it may not be read.

        A relative one is below the manifest's folder. `..`, symbolic links that lead out, and other schemes or
        buckets are refused."""
        if not reference.strip():
            raise StorageError("an empty path")
        absolute = "://" in reference or (reference.startswith("/") and is_local(self.base))
        url = reference if absolute else join(self.base, reference)
        if ".." in reference.split("/"):
            raise StorageError(f"{redact_url(reference)}: may not hold '..'")
        scheme, path = canonical_location(url)
        if self._below(scheme, path) is not None:
            return path if scheme == "file" else url
        raise StorageError(
            f"{redact_url(reference)}: not below the manifest's folder or a folder given by --allow-root"
        )

    def relative_path(self, url: str) -> str:
        """Where what `resolve` gave stands below its root: `shelf/a.png`."""
        scheme, path = canonical_location(url)
        root = self._below(scheme, path)
        return posixpath.basename(path) if root is None else path.removeprefix(root).lstrip("/")

    def _below(self, scheme: str, path: str) -> str | None:
        """The root that holds a path."""
        for root_scheme, root in self.roots:
            if scheme == root_scheme and (path == root or path.startswith(root.rstrip("/") + "/")):
                return root
        return None


def is_below(url: str, folder: str) -> bool:
    """Whether a file is in a folder or below it, symbolic links followed."""
    scheme, path = canonical_location(url)
    folder_scheme, root = canonical_location(folder)
    return scheme == folder_scheme and path.startswith(root.rstrip("/") + "/")


def _looks_like_file(url: str) -> bool:
    return posixpath.splitext(urlsplit(url).path if "://" in url else url)[1] != "" and not (
        is_local(url) and os.path.isdir(locate(url)[1])
    )


def canonical_location(url: str) -> tuple[str, str]:
    """The scheme and the path that a URL comes to, symbolic links followed."""
    scheme, path = split_url(url)[0], locate(url)[1]
    return scheme, os.path.realpath(path) if scheme == "file" else path
