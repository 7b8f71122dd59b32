"""Progress while a model is loaded."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from pipeline.stages.rows import Report


@contextmanager
def report_loading(report: Report) -> Iterator[None]:
    """Say every second that a model is being loaded."""
    ended = threading.Event()

    def beat() -> None:
        before = time.monotonic()
        while not ended.wait(1.0):
            report({"loading_seconds": time.monotonic() - before})
            before = time.monotonic()

    threading.Thread(target=beat, name="loading", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
