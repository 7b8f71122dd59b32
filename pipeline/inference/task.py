"""The contract between a task and the worker that runs its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diffusion.request import DenoisingRequest
from pipeline.tasks.rows import PreparedRow, Row, RowParameters


class Task(Protocol):
    """Turns a row into a denoising request, and its latents into an image."""

    def prepare(self, row: Row, /) -> PreparedRow: ...

    def request(self, key: Any, row: PreparedRow, /) -> DenoisingRequest | NDArray[np.uint8]:
        """Return the request, or the finished image (H, W, C) where nothing is to be denoised."""
        ...

    def decode(self, latents: Tensor, row: PreparedRow, heartbeat: Callable[[], None], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RowResult:
    """A row's image, its parameters in force, and the seconds from its request to its pixels."""

    pixels: NDArray[np.uint8]  # (H, W, C)
    parameters: RowParameters
    seconds: float


Outcome = RowResult | Exception
"""A row's result, or the exception for which it has none: one of its own, ProcessDied, or Stopped."""
