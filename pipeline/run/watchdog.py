"""The driver's watchdog: ends a run on a signal, when it makes no progress, or when its lease is lost."""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final, Self

_POLL_SECONDS: Final = 0.5
LOADING_SECONDS: Final = 3600
"""The longest time in which loading a model counts as progress."""


class Watchdog:
    """Watches a `with` block of the main thread, and interrupts it by KeyboardInterrupt when it must end.

    The first SIGINT or SIGTERM calls `stop`: completed rows are committed and the block ends by itself. After `grace`
    seconds, or at the second signal, the block is interrupted. It is also interrupted, with a `reason`, when no total
    of `poll` changes for `stall_timeout` seconds (loading a model counts as a change for up to LOADING_SECONDS), or
    when `lost` returns True."""

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
        self._stop_requested_at: float | None = None
        self._stop_sent = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._main = threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.reason: str | None = None

    @property
    def stopped(self) -> bool:
        """Return whether a signal asked the run to stop."""
        return self._stop_requested_at is not None

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
        self._stop_requested_at = time.monotonic()

    def _watch(self) -> None:
        before: dict[str, float] = {}
        changed_at = worked_at = time.monotonic()
        while not self._ended.wait(_POLL_SECONDS):
            now, totals = time.monotonic(), dict(self._poll())
            if totals and totals != before:
                changed_at = now
                worked_at = now if _without_loading(totals) != _without_loading(before) else worked_at
                before = totals
            if self._stop_requested_at is not None and not self._stop_sent:
                self._stop_sent = True
                self._stop()
            if self._stop_requested_at is not None and now - self._stop_requested_at > self._grace:
                return self._interrupt(None)
            if self._lost():
                return self._interrupt("another run has taken this output over")
            if now - changed_at > self._stall_timeout or now - worked_at > self._stall_timeout + LOADING_SECONDS:
                return self._interrupt(f"no progress for {now - changed_at:.0f} seconds: no row and no step completed")
        return None

    def _interrupt(self, reason: str | None) -> None:
        self.reason = reason
        if self._handlers and self._main.ident is not None:
            signal.pthread_kill(self._main.ident, signal.SIGINT)


def _without_loading(totals: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in totals.items() if name != "loading_seconds"}
