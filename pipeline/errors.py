"""The exceptions of the package, and the function that turns any exception into one line.

An exception of this module carries one line for a person: what is wrong, what is allowed, what to do.
"""

import re
from collections.abc import Sequence
from typing import Any, Final


class StorageError(OSError):
    """A path or URL that cannot be used. The text holds no secrets."""


class StorageUnavailableError(StorageError):
    """A storage that did not serve a request in any of the attempts: no row is to blame."""


class OutputBusyError(StorageError):
    """An output that another run holds; the text says which run."""


class ManifestError(ValueError):
    """A manifest that cannot be read at all."""


class BuildError(ValueError):
    """A source from which no manifest can be built; the text says where and why."""


class ImageError(ValueError):
    """An image that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the text names the file, the key or the tensor."""


class InvalidRow(ValueError):
    """A row that the manifest's rules refuse."""


class RunError(ValueError):
    """The reason why a run cannot start or did not finish."""


class InvalidManifestError(RunError):
    """A manifest with invalid rows; `problems` lists all of them (`pipeline.manifest.rules.Problem`)."""

    def __init__(self, message: str, problems: Sequence[Any]) -> None:
        super().__init__(message)
        self.problems = problems


class ActorError(RuntimeError):
    """The worker thread of an actor has ended: this actor cannot make the rows that wait."""


class ProcessDied(RuntimeError):
    """The reason of a failed row: each process that worked on it died."""

    def __init__(self, deaths: int) -> None:
        super().__init__(f"the process that worked on this row died {deaths} times, the last times with no other row")


class Stopped(Exception):
    """The run stops before this row is made; the row is neither good nor failed."""


_ANSI_COLOR: Final = re.compile("\x1b\\[[0-9;]*m")
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
        ProcessDied,
    )
)
"""Types whose text is complete without the type's name; by name, since Ray sends some errors as text alone."""


def one_line(error: BaseException) -> str:
    """Return the reason of an exception as one line, without a traceback.

    The innermost reason is taken of an exception that Ray raised for a worker. The type's name stands before the text
    unless the text is made for a person: this module's errors, ValueError and OSError."""
    cause = getattr(error, "cause", None)  # the worker's exception, where Ray could send it whole
    if isinstance(cause, BaseException):
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
    named, colon, reason = last.partition(": ")
    if colon and reason and re.fullmatch(r"[A-Za-z_][\w.]*", named):
        kind, last = named.rpartition(".")[2], reason
    return last if kind in _OWN_ERRORS else f"{kind}: {last}"


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return `error_type` and `error_message` of a failed row: a type's name, and one line of at most 1,000 letters."""
    kind = type(error).__name__
    return kind, one_line(error).removeprefix(f"{kind}: ")[:1000]
