"""The crash journal in a Ray actor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError

_TIMEOUT_SECONDS: Final = 10


@dataclass(frozen=True)
class RemoteJournal:
    """A RowJournal in a Ray actor. While it cannot be reached, no row has deaths and the run does not stop."""

    actor: Any

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        return self._result(self.actor.begin.remote(caller, list(keys)), {})

    def started(self, caller: str, keys: Sequence[str]) -> None:
        self._result(self.actor.started.remote(caller, list(keys)), None)

    def done(self, caller: str, keys: Sequence[str]) -> None:
        self.actor.done.remote(caller, list(keys))

    def stop(self) -> None:
        self.actor.stop.remote()

    def stopping(self) -> bool:
        return self._result(self.actor.stopping.remote(), False)

    def _result(self, reference: Any, default: Any) -> Any:
        try:
            return ray.get(reference, timeout=_TIMEOUT_SECONDS)
        except RayError:
            return default
