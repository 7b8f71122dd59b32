"""The progress of a run on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_BAR_SECONDS: Final = 0.5
_LINE_SECONDS: Final = 5.0


class ProgressDisplay:
    """Shows the totals of `poll` from its own thread while the `with` block runs.

    `poll` returns totals by name: `rows` completed, `ok` and `failed` committed. The rate is measured from the first
    completed row, so that it leaves out the loading of the model."""

    def __init__(self, poll: Callable[[], Mapping[str, float]], *, todo: int, done: int, stream: TextIO | None = None):
        self._poll, self._todo, self._done = poll, todo, done
        self._stream = stream or sys.stderr
        self._ended = threading.Event()
        self._first: tuple[float, float] | None = None
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        if self._stream.isatty():
            self._show_bar()
        else:
            self._show_lines()

    def _show_bar(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[pace]}"), console=Console(file=self._stream)) as bar:
            total = self._todo + self._done
            task = bar.add_task("loading the model", total=total, completed=self._done, pace="")
            last = False
            while not last:
                last = self._ended.wait(_BAR_SECONDS)
                rows, label, pace = self._status()
                bar.update(task, completed=self._done + rows, description=label, pace=pace)

    def _show_lines(self) -> None:
        written = None
        while not self._ended.wait(_LINE_SECONDS):
            rows, label, pace = self._status()
            line = f"{self._done + rows:,} of {self._todo + self._done:,} rows"
            line += f", {pace}" if pace else f": {label}" if label != "rows" else ""
            if line != written:
                self._stream.write(line + "\n")
                self._stream.flush()
            written = line

    def _status(self) -> tuple[int, str, str]:
        """Return the completed rows, a label, and the pace or, once all rows are completed, how many are written."""
        totals = self._poll()
        rows = min(int(totals.get("rows", 0)), self._todo)
        written = int(totals.get("ok", 0) + totals.get("failed", 0))
        label = "rows" if rows or totals.get("evaluations") else "loading the model"
        if written < rows == self._todo:
            return rows, label, f"{self._done + written:,} of them written"
        return rows, label, self._pace(rows)

    def _pace(self, rows: int) -> str:
        """Return `1.8 rows/s, 0:12 left`, measured from the first completed rows."""
        now = time.monotonic()
        if rows and self._first is None:
            self._first = (now, rows)
        if self._first is None or rows <= self._first[1]:
            return ""
        rate = (rows - self._first[1]) / (now - self._first[0])
        return f"{rate_of(rate)}, {duration_of((self._todo - rows) / rate)} left"


def rate_of(rows_per_second: float) -> str:
    """Return `12.3 rows/s`, or rows per minute for slow rates."""
    return f"{rows_per_second:.1f} rows/s" if rows_per_second >= 1 else f"{60 * rows_per_second:.1f} rows/min"


def duration_of(seconds: float) -> str:
    """Return `0:07`, `12:30`, `3:04:05` or `2 days 3 h`."""
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} days {whole % 86_400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
