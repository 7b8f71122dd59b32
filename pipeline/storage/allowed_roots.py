"""The folders from which a manifest's images may be read."""

import os
import posixpath
from functools import lru_cache

from pipeline.errors import StorageError
from pipeline.storage.files import exists, is_folder
from pipeline.storage.filesystem import locate
from pipeline.storage.urls import is_local, is_url, join, parent, redact_url, split_url


class AllowedRoots:
    """The folders from which a manifest's images may be read: the manifest's own and those of `--allow-root`."""

    def __init__(self, manifest: str, allow_roots: tuple[str, ...] = ()) -> None:
        """`manifest` is empty for rows that are in no file; then relative references start from the first root."""
        folders = [_folder_of(manifest)] if manifest else []
        folders += allow_roots
        self.base = folders[0] if folders else None
        self.roots = tuple(_resolved_location(root) for root in folders)

    def resolve(self, reference: str) -> str:
        """Return the URL or real local path of a manifest's reference.

        A relative reference starts from the manifest's folder. StorageError if the file is not below a root: `..`,
        symbolic links out of a root, other schemes and other buckets are refused."""
        if not reference.strip():
            raise StorageError("the path is empty")
        if self.base is None:
            raise StorageError(f"{redact_url(reference)}: no folder to read from is allowed; give it as --allow-root")
        absolute = is_url(reference) or (reference.startswith("/") and is_local(self.base))
        url = reference if absolute else join(self.base, reference)
        if ".." in reference.split("/"):
            raise StorageError(f"{redact_url(reference)}: a path in a manifest may not contain '..'")
        scheme, path = _resolved_location(url)
        if self._root_of(scheme, path) is not None:
            return path if scheme == "file" else url
        raise StorageError(
            f"{redact_url(reference)}: not below the manifest's folder or a folder given by --allow-root"
        )

    def relative_path(self, url: str) -> str:
        """Return the path, below its root, of a URL that `resolve` returned: `shelf/a.png`."""
        scheme, path = _resolved_location(url)
        root = self._root_of(scheme, path)
        return posixpath.basename(path) if root is None else path.removeprefix(root).lstrip("/")

    def _root_of(self, scheme: str, path: str) -> str | None:
        for root_scheme, root in self.roots:
            if scheme == root_scheme and (path == root or path.startswith(root.rstrip("/") + "/")):
                return root
        return None


def is_below(url: str, folder: str) -> bool:
    """Return True if a file or folder is below a folder, or is this folder, after symbolic links are followed."""
    scheme, path = _resolved_location(url)
    folder_scheme, root = _resolved_location(folder)
    return scheme == folder_scheme and f"{path}/".startswith(root.rstrip("/") + "/")


@lru_cache
def _folder_of(manifest: str) -> str:
    """Return the manifest's folder, or its parent folder if it is a file, as storage (not its name) says."""
    return parent(manifest) if not is_folder(manifest) and exists(manifest) else manifest


def _resolved_location(url: str) -> tuple[str, str]:
    """Return a URL's scheme and its path, with symbolic links followed."""
    scheme, path = split_url(url)[0], locate(url)[1]
    return scheme, os.path.realpath(path) if scheme == "file" else path
