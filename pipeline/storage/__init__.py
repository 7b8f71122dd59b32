"""Files on local disk and on object storage, by path or URL.

Credentials and endpoints come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...) and never appear in
a message. Every failure raises StorageError with a message of one line.
"""

from pipeline.errors import StorageError, StorageUnavailableError
from pipeline.storage.allowed_roots import AllowedRoots, is_below
from pipeline.storage.arrow import arrow_filesystem, open_file
from pipeline.storage.files import (
    create_bytes,
    delete,
    delete_leftovers,
    exists,
    is_folder,
    list_files,
    list_sizes,
    put_file,
    read_bytes,
    version_of,
    write_bytes,
)
from pipeline.storage.filesystem import absolute, locate, path_below
from pipeline.storage.retry import take_fault_counts
from pipeline.storage.urls import is_local, is_url, join, parent, redact_url

__all__ = [
    "AllowedRoots",
    "StorageError",
    "StorageUnavailableError",
    "absolute",
    "arrow_filesystem",
    "create_bytes",
    "delete",
    "delete_leftovers",
    "exists",
    "is_below",
    "is_folder",
    "is_local",
    "is_url",
    "join",
    "list_files",
    "list_sizes",
    "locate",
    "open_file",
    "parent",
    "path_below",
    "put_file",
    "read_bytes",
    "redact_url",
    "take_fault_counts",
    "version_of",
    "write_bytes",
]
