"""A guard against calls of the network that never return."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CallGuard:
    """Kills this process when a call takes longer than `limit` seconds.

    A hung GPU call cannot be interrupted. Ray starts the actor again, and the crash journal has recorded its rows."""

    def __init__(self, limit: float, on_hang: Callable[[], None], is_active: Callable[[], bool]) -> None:
        """`on_hang` is called before the process is killed; the guard ends once `is_active` returns False."""
        self._limit, self._on_hang, self._is_active = limit, on_hang, is_active
        self._called_at: float | None = None
        threading.Thread(target=self._watch, name="call-guard", daemon=True).start()

    @contextmanager
    def watch_call(self) -> Iterator[None]:
        """Watch the call in the `with` block."""
        self._called_at = time.monotonic()
        try:
            yield
        finally:
            self._called_at = None

    def _watch(self) -> None:
        while self._is_active():
            time.sleep(min(1.0, self._limit / 4))
            called_at = self._called_at
            if called_at is not None and time.monotonic() - called_at > self._limit:
                self._on_hang()
                os.kill(os.getpid(), signal.SIGKILL)
