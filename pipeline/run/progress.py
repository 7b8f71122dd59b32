"""How far a run is: rate and time left, as a bar on a terminal and as plain lines elsewhere; on standard error."""

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
    """Shows the figures that `poll` gives, from a thread of its own, while the `with` block runs.

    `poll` gives amounts by name: `rows` made, `ok` and `failed` committed. Time is counted from the first row, so that
    loading a model does not spoil the rate."""

    def __init__(self, poll: Callable[[], Mapping[str, float]], *, todo: int, done: int, stream: TextIO | None = None):
        self._poll, self._todo, self._done = poll, todo, done
        self._stream = stream or sys.stderr
        self._ended = threading.Event()
        self._clock: tuple[float, float] | None = None
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
                rows, label, pace = self._now()
                bar.update(task, completed=self._done + rows, description=label, pace=pace)

    def _show_lines(self) -> None:
        shown = None
        while not self._ended.wait(_LINE_SECONDS):
            rows, label, pace = self._now()
            line = f"{self._done + rows:,} of {self._todo + self._done:,} rows"
            line += f", {pace}" if pace else f": {label}" if label != "rows" else ""
            if line != shown:
                self._stream.write(line + "\n")
                self._stream.flush()
            shown = line

    def _now(self) -> tuple[int, str, str]:
        """The rows that are made, what is done, and `1.8 rows/s, 0:12 left`; once all are, how many are written."""
        figures = self._poll()
        rows = min(int(figures.get("rows", 0)), self._todo)
        written = int(figures.get("ok", 0) + figures.get("failed", 0))
        label = "rows" if rows or figures.get("evaluations") else "loading the model"
        if written < rows == self._todo:
            return rows, label, f"{self._done + written:,} of them written"
        return rows, label, self._pace(rows)

    def _pace(self, rows: int) -> str:
        """`1.8 rows/s, 0:12 left`, counted from the first rows seen."""
        at = time.monotonic()
        if rows and self._clock is None:
            self._clock = (at, rows)
        if self._clock is None or rows <= self._clock[1]:
            return ""
        rate = (rows - self._clock[1]) / (at - self._clock[0])
        return f"{rate_of(rate)}, {duration_of((self._todo - rows) / rate)} left"


def rate_of(rows_a_second: float) -> str:
    """`12.3 rows/s`, or rows a minute where that is easier to read."""
    return f"{rows_a_second:.1f} rows/s" if rows_a_second >= 1 else f"{60 * rows_a_second:.1f} rows/min"


def duration_of(seconds: float) -> str:
    """`0:07`, `12:30`, `3:04:05`, `2 days 3 h`."""
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} days {whole % 86_400 // 3600} h"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
