"""Retries of storage requests after transient errors, and one-line messages for the others."""

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

Answer = TypeVar("Answer")
_CLIENTS: Final = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")
"""Packages whose exceptions are about storage, and not OSErrors."""
_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.5
"""Seconds before the second attempt; each further wait is twice as long, and jitter takes up to half of it."""
_PASSING_ERRNOS: Final = frozenset(
    (errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE)
)
_PASSING_KINDS: Final = re.compile("Timeout|Connect|IncompleteRead|ResponseStreaming|Disconnected|Payload|HTTPClient")
_PASSING_TEXTS: Final = re.compile(
    r"SlowDown|InternalError|Internal Server Error|ServiceUnavailable|RequestTimeout|TooManyRequests|\((5\d\d|429)\)"
    "|reduce your request rate|max retries|IncompleteBody|BadDigest",
    re.IGNORECASE,
)
_faults: Counter[str] = Counter()


def take_fault_counts() -> dict[str, int]:
    """The faults of storage in this process since the last call: `storage_retries`."""
    taken = dict(_faults)
    _faults.clear()
    return taken


def retried(url: str, action: Callable[[], Answer]) -> Answer:
    """What `action` gives, after faults that pass; StorageUnavailableError when they do not."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                with storage_errors(url):
                    raise
            _faults["storage_retries"] += 1
            if attempt == _ATTEMPTS:
                reason = f"{_reason(error)} ({_ATTEMPTS} attempts)"
                raise StorageUnavailableError(f"{redact_url(url)}: {reason}") from error
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def is_transient(error: Exception) -> bool:
    """Whether a fault of storage may be gone at the next attempt: overload, a server's error, a line that was cut."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | StorageError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _PASSING_ERRNOS:
        return True
    return bool(_PASSING_KINDS.search(type(error).__name__) or _PASSING_TEXTS.search(str(error)))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what storage clients raise into one StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"{redact_url(url)}: {_reason(error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise StorageError(f"{redact_url(url)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return (
            "the bucket does not exist"
            if "bucket does not exist" in text.lower()
            else "there is no such file or folder"
        )
    if isinstance(error, PermissionError):
        return "access is denied; check the credentials in the environment and their rights"
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance's role"
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ClientConnectorError"):
        return "the storage server does not answer; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, IsADirectoryError):
        return "is a folder; a file is needed"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror.splitlines()[0]
    return text or kind
