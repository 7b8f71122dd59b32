"""Retries of storage requests after transient errors, and one-line messages for errors."""

import errno
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from pipeline.errors import StorageError, StorageUnavailableError
from pipeline.storage.urls import redact_url

Result = TypeVar("Result")
_CLIENT_PACKAGES: Final = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")
"""Packages whose exceptions report storage errors without being OSErrors."""
_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.5
"""Seconds before the second attempt; each further wait is twice as long, and jitter takes up to half of it."""
_TRANSIENT_ERRNOS: Final = frozenset(
    (errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE)
)
_TRANSIENT_TYPES: Final = re.compile("Timeout|Connect|IncompleteRead|ResponseStreaming|Disconnected|Payload|HTTPClient")
_TRANSIENT_TEXTS: Final = re.compile(
    r"SlowDown|InternalError|Internal Server Error|ServiceUnavailable|RequestTimeout|TooManyRequests|\((5\d\d|429)\)"
    "|reduce your request rate|max retries|IncompleteBody|BadDigest",
    re.IGNORECASE,
)
_fault_counts: Counter[str] = Counter()


def take_fault_counts() -> dict[str, int]:
    """Return the number of `storage_retries` of this process since the last call, and reset it."""
    counts = dict(_fault_counts)
    _fault_counts.clear()
    return counts


def with_retries(url: str, action: Callable[[], Result]) -> Result:
    """Return the result of `action`, which is called again after transient errors, with exponential waits.

    StorageUnavailableError if the last attempt fails too; StorageError at once for any other storage error."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                with storage_errors(url):
                    raise
            _fault_counts["storage_retries"] += 1
            if attempt == _ATTEMPTS:
                reason = f"{_reason(error)} ({_ATTEMPTS} attempts)"
                raise StorageUnavailableError(f"{redact_url(url)}: {reason}") from error
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def is_transient(error: Exception) -> bool:
    """Return True for errors that a retry may get past: overload, a server error, a broken connection."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | StorageError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _TRANSIENT_ERRNOS:
        return True
    return bool(_TRANSIENT_TYPES.search(type(error).__name__) or _TRANSIENT_TEXTS.search(str(error)))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert the exceptions of storage clients to StorageError with a message of one line."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"{redact_url(url)}: {_reason(error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENT_PACKAGES:
            raise
        raise StorageError(f"{redact_url(url)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what is wrong and, where possible, what to do."""
    text = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        if "bucket does not exist" in text.lower():
            return "the bucket does not exist"
        return "there is no such file or folder"
    if isinstance(error, PermissionError):
        return "access is denied; check the credentials in the environment and their rights"
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance's role"
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ClientConnectorError"):
        return "the storage server does not answer; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; give a file"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror.splitlines()[0]
    return text or kind
