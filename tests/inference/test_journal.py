"""The journal of rows in flight: whose death it was, alone the next time, and neighbors that are not lost."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.errors import ActorError, ProcessDied, Stopped
from pipeline.inference.journal import MAX_DEATHS, Journal
from pipeline.inference.task import RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.tasks.rows import Row
from tests.cheap import load_cheap

ROWS = [Row(id=f"r{index}", prompt="x", seed=index) for index in range(6)]


class Killed(Exception):
    """Stands for the SIGKILL of a process: the thread ends without a word to the journal."""


class PoisonedJournal(Journal):
    """Notes who runs beside whom; the poison row's start ends its process."""

    def __init__(self) -> None:
        super().__init__()
        self.beside: list[set[str]] = []

    def update(self, caller: str, *, done: Sequence[str], started: Sequence[str], wait: bool = False) -> None:
        super().update(caller, done=done, started=started, wait=wait)
        if "r2" in started:
            self.beside.append({row for row in self._started if self._caller_of[row] == caller} - {"r2"})
            raise Killed


class LateJournal(PoisonedJournal):
    """Loses what a process sent just before it died, unless that process waited for it."""

    def update(self, caller: str, *, done: Sequence[str], started: Sequence[str], wait: bool = False) -> None:
        if "r2" in started and not wait:
            self.beside.append(set())
            raise Killed
        super().update(caller, done=done, started=started, wait=wait)


def lanes_of(journal: Journal) -> LaneWorker:
    torch.set_num_threads(1)
    loaded = load_cheap(RunConfig(task="generate", manifest="m", output="o", lanes=4), "cpu")
    return LaneWorker(loaded.task, loaded.engine, threads=1, report=lambda amounts: None, journal=journal)


def outcomes_after_deaths(journal: PoisonedJournal, most: int) -> list[Any]:
    """Run ROWS in one process after another until one survives, at most so many."""
    for _ in range(most):
        with suppress(ActorError):
            return lanes_of(journal).run(ROWS)
    raise AssertionError(f"{most} processes died")


def test_a_row_that_kills_its_process_fails_after_three_deaths_and_its_neighbors_are_made() -> None:
    journal = PoisonedJournal()
    outcomes = outcomes_after_deaths(journal, MAX_DEATHS + 1)
    assert [isinstance(outcome, RowResult) for outcome in outcomes] == [True, True, False, True, True, True]
    assert isinstance(outcomes[2], ProcessDied) and "3 times" in str(outcomes[2])
    assert journal.beside[0] and journal.beside[1:] == [set()] * (MAX_DEATHS - 1)


def test_a_row_that_dies_before_its_start_arrives_is_found_all_the_same() -> None:
    journal = LateJournal()
    outcomes = outcomes_after_deaths(journal, MAX_DEATHS + 2)
    assert [isinstance(outcome, RowResult) for outcome in outcomes] == [True, True, False, True, True, True]
    assert isinstance(outcomes[2], ProcessDied)
    assert len(journal.beside) == MAX_DEATHS + 1  # one death was not known to be its own


def test_only_rows_that_had_started_in_a_dead_process_are_suspected() -> None:
    journal = Journal()
    journal.begin("one", ["a", "b", "c"])
    journal.begin("other", ["z"])
    journal.update("one", done=[], started=["a", "b"])
    journal.update("one", done=["a"], started=[])
    journal.update("other", done=[], started=["z"])
    assert journal.begin("two", ["a", "b", "c"]) == {"b": 1, "c": 0}
    assert journal.begin("other", ["z"]) == {}


def test_a_journal_forgets_rows_that_are_done() -> None:
    journal = Journal()
    journal.begin("one", ["a", "b"])
    journal.begin("two", ["a", "b"])
    journal.update("two", done=["a", "b"], started=[])
    assert journal.begin("three", ["a", "b"]) == {}


def test_a_run_that_stops_gives_back_what_is_not_made() -> None:
    journal = Journal()
    journal.stop()
    assert all(isinstance(outcome, Stopped) for outcome in lanes_of(journal).run(ROWS))
