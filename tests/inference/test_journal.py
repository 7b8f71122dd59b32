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

    def started(self, caller: str, keys: Sequence[str]) -> None:
        super().started(caller, keys)
        if "r2" in keys:
            self.beside.append({row for row, owner in self._caller_of.items() if owner == caller} - {"r2"})
            raise Killed


def lanes_of(journal: Journal) -> LaneWorker:
    torch.set_num_threads(1)
    loaded = load_cheap(RunConfig(task="generate", manifest="m", output="o", lanes=4), "cpu")
    return LaneWorker(loaded.task, loaded.engine, threads=1, report=lambda amounts: None, journal=journal)


def test_a_row_that_kills_its_process_fails_after_three_deaths_and_its_neighbors_are_made() -> None:
    journal = PoisonedJournal()
    outcomes: list[Any] = []
    processes = 0
    while not outcomes:
        processes += 1
        assert processes <= MAX_DEATHS + 1
        with suppress(ActorError):
            outcomes = lanes_of(journal).run(ROWS)
    assert processes == MAX_DEATHS + 1
    assert [isinstance(outcome, RowResult) for outcome in outcomes] == [True, True, False, True, True, True]
    assert isinstance(outcomes[2], ProcessDied) and "3 times" in str(outcomes[2])
    assert journal.beside[0] and journal.beside[1:] == [set()] * (MAX_DEATHS - 1)


def test_only_what_a_dead_process_had_in_flight_is_suspected() -> None:
    journal = Journal()
    journal.begin("one", ["a", "b", "c"])
    for row in ("a", "b"):
        journal.started("one", [row])
    journal.done("one", ["a"])
    journal.started("other", ["z"])
    assert journal.begin("two", ["a", "b", "c"]) == {"b": 1}
    assert journal.begin("other", ["z"]) == {}


def test_a_run_that_stops_gives_back_what_is_not_made() -> None:
    journal = Journal()
    journal.stop()
    assert all(isinstance(outcome, Stopped) for outcome in lanes_of(journal).run(ROWS))
