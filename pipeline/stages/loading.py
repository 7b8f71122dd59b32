"""Progress while a model is loaded."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.stages.rows import Report


@contextmanager
def report_loading(report: Report) -> Iterator[None]:
    """Report every second that the model loads, so that the run's watchdog does not take it for a standstill."""
    ended = threading.Event()

    def send_heartbeats() -> None:
        before = time.monotonic()
        while not ended.wait(1.0):
            report({"loading_seconds": time.monotonic() - before})
            before = time.monotonic()

    threading.Thread(target=send_heartbeats, name="loading", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
