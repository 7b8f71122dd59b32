"""The exceptions of the package, and the function that turns any exception into one line.

The message of an exception of this module is one line for users: what is wrong, what is allowed, what to do.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

Result = TypeVar("Result")


class StorageError(OSError):
    """A path or URL cannot be used. The message contains no secrets."""


class StorageUnavailableError(StorageError):
    """Storage did not serve a request in any attempt. The cause is never a row."""


class OutputBusyError(StorageError):
    """Another run holds the lease on the output; the message names that run."""


class ManifestError(ValueError):
    """A manifest cannot be read."""


class BuildError(ValueError):
    """A manifest cannot be built from a source; the message names the file, the line and the reason."""


class ImageError(ValueError):
    """An image cannot be decoded or encoded."""


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message names the file, the key or the tensor."""


class InvalidRow(ValueError):
    """A row breaks the rules of the manifest."""


class RunError(ValueError):
    """A run cannot start, or did not finish."""


class InvalidManifestError(RunError):
    """A manifest has invalid rows. `problems` lists all of them (`pipeline.manifest.rules.Problem`)."""

    def __init__(self, message: str, problems: Sequence[Any]) -> None:
        super().__init__(message)
        self.problems = problems


class ActorError(RuntimeError):
    """The worker thread of an actor has ended, so the actor cannot process its waiting rows."""


class StageError(RuntimeError):
    """A stage that got or returned other columns or rows than it declares: a programming error."""


class ProcessDied(RuntimeError):
    """Each process that worked on a row died; the row fails."""

    def __init__(self, deaths: int) -> None:
        super().__init__(
            f"the process that worked on this row died {deaths} times, most recently while it ran no other row"
        )


class Stopped(Exception):
    """The run stops before a row is processed; the row is neither done nor failed."""


RUN_ERRORS: Final = (CheckpointError, RunError, OutputBusyError, StorageUnavailableError, ActorError, StageError)
"""Exceptions that every row would meet: they end the run and are never written into a row."""
_MEMORY: Final = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def attempt(action: Callable[[], Result]) -> Result | Exception:
    """Return the result of an action on one row or a few rows, or the exception for which they have none.

    Whatever a row's content or size causes is the row's failure. RUN_ERRORS and the errors of Ray are raised."""
    try:
        return action()
    except RUN_ERRORS:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] == "ray":
            raise
        return error


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the memory of the process or of its device was not enough."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


_ANSI_COLOR: Final = re.compile("\x1b\\[[0-9;]*m")
_RAY_WRAPPER: Final = "UserCodeException"
"""Ray Data raises it from a stage's exception, which is then only in the text of the traceback."""
_OUTER_TRACEBACK: Final = "\n\nThe above exception was the direct cause"
_OWN_ERRORS: Final = frozenset(
    kind.__name__
    for kind in (
        StorageError,
        StorageUnavailableError,
        OutputBusyError,
        ManifestError,
        BuildError,
        ImageError,
        CheckpointError,
        InvalidRow,
        RunError,
        InvalidManifestError,
        ActorError,
        StageError,
        ProcessDied,
    )
)
"""Types whose messages are complete without the type's name. They are names because Ray sends some errors as text."""


def one_line(error: BaseException) -> str:
    """Return the reason of an exception as one line, without a traceback.

    For an exception that Ray raised for a worker, it is the innermost reason. The type's name precedes the message,
    except for this module's errors, ValueError and OSError, whose messages are written for users."""
    cause = getattr(error, "cause", None)  # the worker's exception, if Ray could pickle it
    if isinstance(cause, BaseException) and type(cause).__name__ != _RAY_WRAPPER:
        return one_line(cause)
    kind = type(error).__name__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = _ANSI_COLOR.sub("", text).split(_OUTER_TRACEBACK)[0]
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return kind
    if isinstance(error, ValueError | OSError) and "Traceback (most recent call last)" not in text:
        return lines[0].strip()
    last = next((line.strip() for line in reversed(lines) if not line.startswith(" ")), lines[-1].strip())
    prefix, colon, reason = last.partition(": ")
    if colon and reason and re.fullmatch(r"[A-Za-z_][\w.]*", prefix):
        kind, last = prefix.rpartition(".")[2], reason
    return last if kind in _OWN_ERRORS else f"{kind}: {last}"


def printable(text: str) -> str:
    """Return text as one line that any terminal can show: control characters and bytes that are not UTF-8 escaped."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return `error_type` and `error_message` of a failed row; the message is one line of at most 1,000 characters."""
    kind = type(error).__name__
    return kind, one_line(error).removeprefix(f"{kind}: ")[:1000]
