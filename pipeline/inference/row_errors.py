"""Actions on one row on a device: the row's errors are told from the device's."""

from collections.abc import Callable
from typing import Final, TypeVar

import torch

from pipeline.errors import attempt, is_out_of_memory

Result = TypeVar("Result")
_PROBE_ELEMENTS: Final = 2**18
"""A working device has at least this much memory for a row: 1 MiB of float32."""


def attempt_on_device(action: Callable[[], Result], device: torch.device) -> Result | Exception:
    """Return the result of an action on one row, or the row's error; an error of the device itself is raised.

    After an action that runs out of memory, the allocator's cache is freed and the action repeated once."""
    outcome = attempt(action)
    if isinstance(outcome, Exception) and is_out_of_memory(outcome):
        if device.type == "cuda":
            torch.cuda.empty_cache()
        outcome = attempt(action)
    if isinstance(outcome, RuntimeError | MemoryError):  # torch raises RuntimeError for a lost device too
        raise_unless_working(device, outcome)
    return outcome


def raise_unless_working(device: torch.device, error: Exception) -> None:
    """Raise `error` if the device no longer computes, as after a failed kernel or when it is gone."""
    try:
        total = float(torch.ones(_PROBE_ELEMENTS, device=device).sum())
    except (RuntimeError, MemoryError):
        raise error from None
    if total != _PROBE_ELEMENTS:
        raise error
