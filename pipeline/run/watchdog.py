"""The driver's watch over a run that executes: signals, a run that stands still, a lease that is lost."""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final, Self

_POLL_SECONDS: Final = 0.5
LOADING_SECONDS: Final = 3600
"""A model may load for so long; while it does, a run does not stand still."""


class Watchdog:
    """Watches while the `with` block runs in the main thread; interrupts it by KeyboardInterrupt when it must end.

    The first SIGINT or SIGTERM asks the stages to finish: what is made is committed, and the block ends by itself.
    After `grace` seconds, or at the second signal, it is interrupted. `reason` says why, if the watchdog ended it: no
    figure changed for `stall_timeout` seconds (loading a model counts as change for LOADING_SECONDS), or `lost`."""

    def __init__(
        self,
        *,
        poll: Callable[[], Mapping[str, float]],
        stop: Callable[[], None],
        lost: Callable[[], bool],
        stall_timeout: float,
        grace: float,
    ) -> None:
        self._poll, self._stop, self._lost = poll, stop, lost
        self._stall_timeout, self._grace = stall_timeout, grace
        self._ended = threading.Event()
        self._asked: float | None = None
        self._told = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.reason: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a signal asked for the end."""
        return self._asked is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is self._main:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ended.is_set():
            return
        if self.reason or self.stopped:
            raise KeyboardInterrupt
        self._asked = time.monotonic()

    def _watch(self) -> None:
        before: dict[str, float] = {}
        changed = worked = time.monotonic()
        while not self._ended.wait(_POLL_SECONDS):
            at, figures = time.monotonic(), dict(self._poll())
            if figures and figures != before:
                changed = at
                worked = at if _work(figures) != _work(before) else worked
                before = figures
            if self._asked is not None and not self._told:
                self._told = True
                self._stop()
            if self._asked is not None and at - self._asked > self._grace:
                return self._interrupt(None)
            if self._lost():
                return self._interrupt("another run has taken this output over")
            if at - changed > self._stall_timeout or at - worked > self._stall_timeout + LOADING_SECONDS:
                return self._interrupt(f"nothing has moved for {at - changed:.0f} seconds: no row, no step of one")
        return None

    def _interrupt(self, reason: str | None) -> None:
        self.reason = reason
        if self._handlers and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, signal.SIGINT)


def _work(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in figures.items() if name != "loading_seconds"}
