"""One thread that owns a lane engine; concurrent calls hand it their rows, so lanes are refilled across batches."""

import os
import signal
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diffusion.engine import DenoisingRequest, EngineStats, LaneEngine, Result
from pipeline.errors import ActorError, ProcessDied, Stopped, one_line
from pipeline.inference.journal import MAX_DEATHS, Journal, RowJournal

ROW_ERRORS: Final = (ValueError, TypeError, KeyError, OverflowError)
"""What a task raises when the row is to blame; anything else ends the actor."""

_REPORT_SECONDS: Final = 0.5


class Task(Protocol):
    """What turns a row into a denoising request (or, with nothing to denoise, a picture), and its latents into one."""

    def prepare(self, row: Mapping[str, Any], /) -> Mapping[str, Any]: ...
    def parameters(self, row: Mapping[str, Any], /) -> dict[str, Any]: ...
    def request(self, key: Any, row: Mapping[str, Any], /) -> DenoisingRequest | NDArray[np.uint8]: ...
    def pixels(self, latents: Tensor, row: Mapping[str, Any], beat: Callable[[], None], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RowResult:
    """A row's picture, uint8 (H, W, 3), every parameter in force, and the seconds from its request to its pixels."""

    pixels: NDArray[np.uint8]
    parameters: dict[str, Any]
    seconds: float


Outcome = RowResult | Exception
"""What became of a row; an exception is one of ROW_ERRORS, ProcessDied, or Stopped."""

Report = Callable[[Mapping[str, float]], None]
"""Where amounts are added up by name: rows, evaluations, lanes_filled, lanes_run, and seconds (`rates.SECONDS`)."""


@dataclass(slots=True, eq=False)
class _Call:
    """The rows of one batch, and what has become of them so far."""

    outcomes: list[Outcome | None]
    missing: int
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class _Place:
    """A row's place in its call."""

    call: _Call
    index: int
    row: Mapping[str, Any]
    key: str
    alone: bool
    """A process died with this row: the next death shall be surely its own."""
    started: float = 0.0


class LaneThread:
    """Runs rows of several concurrent calls through one task and one engine.

    Rows enter the engine in the order in which they came, only as lanes get free; those with which a process died come
    first, each alone. When the thread dies, every call that waits raises ActorError, and so does every later one. When
    the journal says that the run stops, what is not finished is Stopped.
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
        """`call_limit`: seconds after which a call of the network hangs, and this process is killed: whoever runs it
        starts another, and the journal knows which rows it had."""
        self._task, self._engine, self._threads, self._report = task, engine, threads, report
        self._journal, self._name = journal or Journal(), uuid.uuid4().hex
        self._changed = threading.Condition()
        self._waiting: deque[_Place] = deque()
        self._calls: set[_Call] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._running: dict[int, _Place] = {}
        self._settled: list[str] = []
        self._next_key = 0
        self._told, self._told_at = EngineStats(), 0.0
        self._unreported = defaultdict[str, float](float)
        self._called_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="lanes", daemon=True)
        self._thread.start()
        if call_limit is not None:
            threading.Thread(target=self._guard, args=(call_limit,), name="guard", daemon=True).start()

    def run(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """What became of each row, in their order; blocks until all are done. Called from any thread."""
        if not rows:
            return []
        if self._journal.stopping():
            return [Stopped()] * len(rows)
        call = _Call(outcomes=[None] * len(rows), missing=len(rows))
        deaths = self._journal.begin(self._name, [key_of(row) for row in rows])
        places = [_Place(call, index, row, key_of(row), key_of(row) in deaths) for index, row in enumerate(rows)]
        for place in places:
            if deaths.get(place.key, 0) >= MAX_DEATHS:
                self._settle(place, ProcessDied(deaths[place.key]))
        places = [place for place in places if call.outcomes[place.index] is None]
        with self._changed:
            if self._failure is None:
                self._calls.add(call)
                self._waiting.extendleft(place for place in places if place.alone)
                self._waiting.extend(place for place in places if not place.alone)
                self._changed.notify()
            else:
                call.done.set()
        if call.missing:
            call.done.wait()
        if call.missing:
            raise ActorError(f"the lanes' thread ended: {one_line(self._failure or Stopped())}") from self._failure
        return [outcome for outcome in call.outcomes if outcome is not None]

    def close(self) -> None:
        """End the thread once nothing runs."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            while self._wait_for_rows():
                self._admit()
                for key, latents in self._step():
                    if (place := self._running.pop(_number(key), None)) is not None:
                        self._finish(place, latents)
                self._tell_journal()
                self._tell(force=not self._running)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the calls that wait must hear of it
            self._fail(error)
        else:
            self._fail(ActorError("the lanes are closed"))

    def _step(self) -> list[Result]:
        self._called_at = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._called_at = None

    def _guard(self, limit: float) -> None:
        while self._thread.is_alive():
            time.sleep(min(1.0, limit / 4))
            since = self._called_at
            if since is not None and time.monotonic() - since > limit:
                self._report({"hung_calls": 1})
                time.sleep(_REPORT_SECONDS)  # for the report to leave
                os.kill(os.getpid(), signal.SIGKILL)

    def _wait_for_rows(self) -> bool:
        with self._changed:
            with self._timed("waiting"):
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
            return bool(self._waiting or self._running)

    def _admit(self) -> None:
        """Give the engine rows while it could take them at its next step; the journal hears of them together."""
        while places := self._next_places():
            self._journal.started(self._name, [place.key for place in places])
            for place in places:
                self._start(place)

    def _next_places(self) -> list[_Place]:
        """The rows that come next, no more than there are lanes for if each takes one."""
        free = self._engine.lanes - self._engine.backlog
        if any(place.alone for place in self._running.values()):
            return []
        with self._changed:
            if self._waiting and self._waiting[0].alone:
                return [] if self._running else [self._waiting.popleft()]
            return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]

    def _start(self, place: _Place) -> None:
        place.started = time.perf_counter()
        try:
            with self._timed("request"):
                place.row = self._task.prepare(place.row)
                request = self._task.request(self._next_key, place.row)
            if isinstance(request, np.ndarray):
                return self._settle(place, self._made(place, request))
        except ROW_ERRORS as error:
            return self._settle(place, error)
        self._running[self._next_key] = place
        self._next_key += 1
        self._engine.add(request)

    def _finish(self, place: _Place, latents: Tensor | ValueError) -> None:
        if isinstance(latents, ValueError):
            return self._settle(place, latents)
        try:
            with self._timed("decode"):
                made = self._made(place, self._task.pixels(latents, place.row, self._beat))
        except ROW_ERRORS as error:
            return self._settle(place, error)
        return self._settle(place, made)

    def _beat(self) -> None:
        """Tell of a part of a picture: a large one is decoded for longer than a run may stand still."""
        self._unreported["parts_decoded"] += 1
        self._tell(force=False)

    def _made(self, place: _Place, pixels: NDArray[np.uint8]) -> RowResult:
        parameters = self._task.parameters(place.row)
        return RowResult(pixels=pixels, parameters=parameters, seconds=time.perf_counter() - place.started)

    def _settle(self, place: _Place, outcome: Outcome) -> None:
        self._unreported["rows"] += 1
        self._settled.append(place.key)
        place.call.outcomes[place.index] = outcome
        place.call.missing -= 1
        if not place.call.missing:
            with self._changed:
                self._calls.discard(place.call)
            place.call.done.set()

    def _tell_journal(self) -> None:
        if self._settled:
            self._journal.done(self._name, self._settled)
            self._settled = []

    def _tell(self, *, force: bool) -> None:
        at = time.monotonic()
        if not force and at - self._told_at < _REPORT_SECONDS:
            return
        stats, told = self._engine.stats, self._told
        self._report(
            {
                **self._unreported,
                "evaluations": stats.calls - told.calls,
                "lanes_filled": stats.lanes_filled - told.lanes_filled,
                "lanes_run": stats.lanes_run - told.lanes_run,
                "network_seconds": stats.network_seconds - told.network_seconds,
                "out_of_memory": stats.out_of_memory - told.out_of_memory,
                "gpu_memory_bytes": stats.memory_bytes - told.memory_bytes,
            }
        )
        self._told = replace(stats)
        self._told_at = at
        self._unreported.clear()
        if self._journal.stopping():
            self._let_go()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._unreported[f"{name}_seconds"] += time.perf_counter() - before

    def _let_go(self) -> None:
        """What is not finished is not made; the engine may end with what it has."""
        with self._changed:
            places, self._waiting, self._running = [*self._running.values(), *self._waiting], deque(), {}
        for place in places:
            self._settle(place, Stopped())

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            calls, self._calls = self._calls, set()
            self._waiting.clear()
        for call in calls:
            call.done.set()


def key_of(row: Mapping[str, Any]) -> str:
    """A row's name in the journal; the decoding of its pictures has another."""
    return str(row.get("id"))


def _number(key: Any) -> int:
    assert isinstance(key, int)
    return key
