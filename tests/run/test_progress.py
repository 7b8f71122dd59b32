"""Progress: a bar on a terminal, plain lines elsewhere."""

import io
import time

import pytest

from pipeline.run import progress
from pipeline.run.metrics import Totals
from pipeline.run.progress import ProgressDisplay, duration_of, rate_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.02)


def progress_on(stream: io.StringIO) -> str:
    rows = iter([0, 0, 1, 3, 5, 6])
    state = {"rows": 0}

    def poll() -> dict[str, float]:
        state["rows"] = next(rows, state["rows"])
        return {"rows": state["rows"]}

    with ProgressDisplay(poll, todo=10, done=2, stream=stream):
        time.sleep(0.3)
    return stream.getvalue()


def test_lines_say_how_far_how_fast_and_how_long() -> None:
    lines = progress_on(io.StringIO()).splitlines()
    assert lines[0] == "2 of 12 rows: loading the model"
    assert any(line.startswith("5 of 12 rows, ") and line.endswith(" left") for line in lines)
    assert len(lines) == len(set(lines))


def test_a_terminal_gets_a_bar() -> None:
    text = progress_on(Terminal())
    assert "\x1b[" in text and "8/12" in text


def test_amounts_are_added_up() -> None:
    totals = Totals()
    totals.add({"rows": 2, "network_seconds": 0.5})
    totals.add({"rows": 1})
    assert totals.total() == {"rows": 3, "network_seconds": 0.5}


def test_words_for_time_and_rate() -> None:
    assert [duration_of(seconds) for seconds in (7, 750, 11_045, 183_600)] == ["0:07", "12:30", "3:04:05", "2 days 3 h"]
    assert [rate_of(rate) for rate in (12.34, 0.5)] == ["12.3 rows/s", "30.0 rows/min"]


def test_completed_rows_are_not_yet_written() -> None:
    stream = io.StringIO()
    written = iter([0, 3, 5])
    with ProgressDisplay(lambda: {"rows": 5, "ok": next(written, 5), "failed": 0}, todo=5, done=1, stream=stream):
        time.sleep(0.2)
    assert stream.getvalue().splitlines() == [
        "6 of 6 rows, 1 of them written",
        "6 of 6 rows, 4 of them written",
        "6 of 6 rows",
    ]
