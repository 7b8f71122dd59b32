"""The worker thread of an actor: it owns the lane engine and runs the rows of concurrent calls through it."""

import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diffusion.engine import EngineStats, LaneEngine
from pipeline.diffusion.request import Result
from pipeline.errors import ActorError, ProcessDied, Stopped, one_line
from pipeline.inference.call_guard import CallGuard
from pipeline.inference.journal import MAX_DEATHS, Journal, RowJournal
from pipeline.inference.row_errors import attempt_on_device
from pipeline.inference.task import Outcome, RowResult, Task
from pipeline.tasks.rows import PreparedRow, Row

_REPORT_SECONDS: Final = 0.5

Report = Callable[[Mapping[str, float]], None]
"""Adds up amounts by name: rows, evaluations, lanes_filled, lanes_run, and seconds (`run.rates.SECONDS`)."""


@dataclass(slots=True, eq=False)
class _Call:
    """The rows of one batch and their outcomes so far."""

    outcomes: list[Outcome | None]
    unresolved: int
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class _PendingRow:
    """A row without an outcome, and its index in its call."""

    call: _Call
    index: int
    row: Row
    key: str
    isolated: bool
    """The row runs with no other row: a process died with it, and the next death must be surely its own."""
    doubtful: bool
    """The row's start waits for the journal: a process that had the row died."""
    prepared: PreparedRow | None = None
    started_at: float = 0.0


class LaneWorker:
    """Runs rows of several concurrent calls through one task and one engine, on a thread of its own.

    Rows enter the engine in their order, only as lanes get free; isolated rows come first, one at a time. When the
    thread ends, every waiting call and every later one raises ActorError. When the journal says that the run stops,
    unfinished rows get the outcome Stopped.
    """

    def __init__(
        self,
        task: Task,
        engine: LaneEngine,
        *,
        threads: int,
        report: Report,
        journal: RowJournal | None = None,
        call_limit: float | None = None,
    ) -> None:
        """`call_limit` is in seconds: this process is killed when a call of the network takes longer."""
        self._task, self._engine, self._threads, self._report = task, engine, threads, report
        self._journal, self._name = journal or Journal(), uuid.uuid4().hex
        self._condition = threading.Condition()  # guards what caller threads and the worker thread share
        self._waiting: deque[_PendingRow] = deque()
        self._calls: set[_Call] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._resolved_keys: list[str] = []
        self._unreported = defaultdict[str, float](float)
        self._running: dict[int, _PendingRow] = {}
        self._next_key = 0
        self._reported_stats, self._reported_at = EngineStats(), 0.0
        self._thread = threading.Thread(target=self._work, name="lanes", daemon=True)
        self._guard = (
            None if call_limit is None else CallGuard(call_limit, self._report_hang, lambda: self._failure is None)
        )
        self._thread.start()

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return the outcome of each row, in their order; blocks until all have one. Called from any thread."""
        if not rows:
            return []
        if self._journal.stopping():
            return [Stopped()] * len(rows)
        call = _Call(outcomes=[None] * len(rows), unresolved=len(rows))
        deaths = self._journal.begin(self._name, [row.id for row in rows])
        pending = [
            _PendingRow(call, index, row, row.id, isolated=deaths.get(row.id, 0) > 0, doubtful=row.id in deaths)
            for index, row in enumerate(rows)
        ]
        with self._condition:
            for row in pending:
                if deaths.get(row.key, 0) >= MAX_DEATHS:
                    self._resolve(row, ProcessDied(deaths[row.key]))
            pending = [row for row in pending if call.outcomes[row.index] is None]
            if self._failure is None:
                self._calls.add(call)
                self._waiting.extendleft(row for row in pending if row.isolated)
                self._waiting.extend(row for row in pending if not row.isolated)
                self._condition.notify()
            else:
                call.done.set()
        if call.unresolved:
            call.done.wait()
        if call.unresolved:
            failure = self._failure or Stopped()
            raise ActorError(f"the worker thread ended: {one_line(failure)}") from failure
        return [outcome for outcome in call.outcomes if outcome is not None]

    def close(self) -> None:
        """End the thread once no row is left."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            while self._wait_for_rows():
                self._admit()
                for key, latents in self._step():
                    if (row := self._running.pop(_as_int(key), None)) is not None:
                        self._finish(row, latents)
                if not self._waiting:
                    self._update_journal([])
                self._flush_metrics(force=not self._running)
        except BaseException as error:  # noqa: BLE001 - the waiting calls must raise, whatever it is
            self._fail(error)
        else:
            self._fail(ActorError("the worker is closed"))

    def _step(self) -> list[Result]:
        with self._guard.watch_call() if self._guard is not None else nullcontext():
            return self._engine.step()

    def _report_hang(self) -> None:
        self._report({"hung_calls": 1})
        time.sleep(_REPORT_SECONDS)  # for the report to leave this process

    def _wait_for_rows(self) -> bool:
        """Wait until there are rows; False once the worker is closed and has none."""
        with self._condition:
            with self._timed("waiting"):
                while not (self._waiting or self._running or self._closed):
                    self._condition.wait()
            return bool(self._waiting or self._running)

    def _admit(self) -> None:
        """Admit the rows that the engine's next step could take; the journal records them first."""
        while rows := self._next_rows():
            self._update_journal(rows)
            for row in rows:
                self._start(row)

    def _next_rows(self) -> list[_PendingRow]:
        """Return the next rows, at most as many as there are free lanes; an isolated row only with no other."""
        if any(row.isolated for row in self._running.values()):
            return []
        with self._condition:
            if self._waiting and self._waiting[0].isolated:
                return [] if self._running else [self._waiting.popleft()]
            free = self._engine.lanes - self._engine.backlog
            return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]

    def _start(self, row: _PendingRow) -> None:
        row.started_at = time.perf_counter()
        with self._timed("request"):
            outcome = attempt_on_device(lambda: self._request(row), self._engine.device)
        if outcome is not None:
            self._resolve(row, outcome)

    def _request(self, row: _PendingRow) -> RowResult | None:
        """Give the engine a row's request; return the row's result if there is nothing to denoise."""
        key, self._next_key = self._next_key, self._next_key + 1
        row.prepared = self._task.prepare(row.row)
        request = self._task.request(key, row.prepared)
        if isinstance(request, np.ndarray):
            return self._result(row, row.prepared, request)
        self._engine.add(request)
        self._running[key] = row
        return None

    def _finish(self, row: _PendingRow, latents: Tensor | Exception) -> None:
        if isinstance(latents, Exception):
            return self._resolve(row, latents)
        with self._timed("decode"):
            outcome = attempt_on_device(lambda: self._decode(row, latents), self._engine.device)
        return self._resolve(row, outcome)

    def _decode(self, row: _PendingRow, latents: Tensor) -> RowResult:
        assert row.prepared is not None
        return self._result(row, row.prepared, self._task.decode(latents, row.prepared, self._heartbeat))

    def _heartbeat(self) -> None:
        """Report a decoded part: a large image takes longer than a run may show no progress."""
        self._count("parts_decoded", 1)
        self._flush_metrics(force=False)

    def _result(self, row: _PendingRow, prepared: PreparedRow, pixels: NDArray[np.uint8]) -> RowResult:
        seconds = time.perf_counter() - row.started_at
        return RowResult(pixels=pixels, parameters=prepared.parameters, seconds=seconds)

    def _resolve(self, row: _PendingRow, outcome: Outcome) -> None:
        """Set a row's outcome, and wake its call if it was the last. Called from any thread."""
        with self._condition:
            self._unreported["rows"] += 1
            self._resolved_keys.append(row.key)
            row.call.outcomes[row.index] = outcome
            row.call.unresolved -= 1
            if not row.call.unresolved:
                self._calls.discard(row.call)
                row.call.done.set()

    def _update_journal(self, starting: Sequence[_PendingRow]) -> None:
        """Note the rows that are resolved and those that start now."""
        with self._condition:
            done, self._resolved_keys = self._resolved_keys, []
        if done or starting:
            wait = any(row.doubtful for row in starting)
            self._journal.update(self._name, done=done, started=[row.key for row in starting], wait=wait)

    def _flush_metrics(self, *, force: bool) -> None:
        """Report the amounts since the last report, twice a second or if `force`; stop if the run stops."""
        at = time.monotonic()
        if not force and at - self._reported_at < _REPORT_SECONDS:
            return
        with self._condition:
            amounts = dict(self._unreported)
            self._unreported.clear()
        stats, reported = self._engine.stats, self._reported_stats
        self._report(
            {
                **amounts,
                "evaluations": stats.calls - reported.calls,
                "lanes_filled": stats.lanes_filled - reported.lanes_filled,
                "lanes_run": stats.lanes_run - reported.lanes_run,
                "network_seconds": stats.network_seconds - reported.network_seconds,
                "out_of_memory": stats.out_of_memory - reported.out_of_memory,
                "gpu_memory_bytes": stats.memory_bytes - reported.memory_bytes,
            }
        )
        self._reported_stats, self._reported_at = replace(stats), at
        if self._journal.stopping():
            self._cancel_pending()

    def _count(self, name: str, amount: float) -> None:
        with self._condition:
            self._unreported[name] += amount

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._count(f"{name}_seconds", time.perf_counter() - before)

    def _cancel_pending(self) -> None:
        """Resolve every unfinished row as Stopped; what the engine still computes is dropped."""
        with self._condition:
            rows, self._waiting, self._running = [*self._running.values(), *self._waiting], deque(), {}
        for row in rows:
            self._resolve(row, Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._failure = error
            calls, self._calls = self._calls, set()
            self._waiting.clear()
        for call in calls:
            call.done.set()


def _as_int(key: Any) -> int:
    assert isinstance(key, int)
    return key
