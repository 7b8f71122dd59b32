"""The crash journal in Ray actors."""

import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

_TIMEOUT_SECONDS: Final = 10
_ASK_SECONDS: Final = 1.0
"""How often a process asks whether the run stops."""


class _StopFlag:
    """Whether the run stops, as far as this process knows. Asking the journal never waits for its answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = False
        self._question: Any = None
        self._asked_at = -_ASK_SECONDS

    def stopping(self, shard: Any) -> bool:
        with self._lock:
            if self._question is not None and ray.wait([self._question], timeout=0)[0]:
                with suppress(RayError):  # the journal cannot be reached: the run goes on
                    self._stopping = bool(ray.get(self._question))
                self._question = None
            if not self._stopping and self._question is None and time.monotonic() - self._asked_at >= _ASK_SECONDS:
                self._question, self._asked_at = shard.stopping.remote(), time.monotonic()
            return self._stopping


_stop_flags: defaultdict[Any, _StopFlag] = defaultdict(_StopFlag)
"""Of this process, by actor: each task gets a new copy of its stage."""


@dataclass(frozen=True)
class RemoteJournal:
    """A RowJournal in Ray actors, of which each caller uses one.

    Ray repeats a task of an actor in the same actor, and any other task under the same id, so that rows return to the
    shard that knows them. While a shard cannot be reached, no row has deaths and the run does not stop."""

    shards: tuple[Any, ...]

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        return self._result(self._shard().begin.remote(caller, list(keys)), {})

    def update(self, caller: str, *, done: Sequence[str], started: Sequence[str], wait: bool) -> None:
        reference = self._shard().update.remote(caller, done=list(done), started=list(started))
        if wait:
            self._result(reference, None)

    def stop(self) -> None:
        for shard in self.shards:
            shard.stop.remote()

    def stopping(self) -> bool:
        shard = self._shard()
        return _stop_flags[shard._actor_id].stopping(shard)

    def _shard(self) -> Any:
        if len(self.shards) == 1:
            return self.shards[0]
        context = ray.get_runtime_context()
        caller = context.get_actor_id() or context.get_task_id() or ""
        return self.shards[zlib.crc32(caller.encode()) % len(self.shards)]

    def _result(self, reference: Any, default: Any) -> Any:
        try:
            return ray.get(reference, timeout=_TIMEOUT_SECONDS)
        except RayError:
            return default
