"""Local paths and object storage by URL: small reads, atomic small writes, listings, and which roots may be read.

Keys and endpoints come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...) and are never put into a
message. Everything that fails raises StorageError, whose text is one line for the person who gave the URL.
"""

from pipeline.errors import StorageError, StorageUnavailableError
from pipeline.storage.allowed_roots import AllowedRoots, is_below
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.files import (
    create_bytes,
    delete,
    delete_leftovers,
    exists,
    is_folder,
    list_files,
    put_file,
    read_bytes,
    write_bytes,
)
from pipeline.storage.filesystem import locate
from pipeline.storage.retry import take_fault_counts
from pipeline.storage.urls import SCHEMES, is_local, join, parent, redact_url

__all__ = [
    "SCHEMES",
    "AllowedRoots",
    "StorageError",
    "StorageUnavailableError",
    "arrow_filesystem",
    "create_bytes",
    "delete",
    "delete_leftovers",
    "exists",
    "is_below",
    "is_folder",
    "is_local",
    "join",
    "list_files",
    "locate",
    "parent",
    "put_file",
    "read_bytes",
    "redact_url",
    "take_fault_counts",
    "write_bytes",
]
