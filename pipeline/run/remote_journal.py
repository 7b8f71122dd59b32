"""The crash journal as a Ray actor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError


@dataclass(frozen=True)
class RemoteJournal:
    """A Journal that is an actor. While it cannot be reached it knows of no deaths: it only protects."""

    actor: Any

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        return self._answer(self.actor.begin.remote(caller, list(keys)), {})

    def started(self, caller: str, keys: Sequence[str]) -> None:
        self._answer(self.actor.started.remote(caller, list(keys)), None)

    def done(self, caller: str, keys: Sequence[str]) -> None:
        self.actor.done.remote(caller, list(keys))

    def stop(self) -> None:
        self.actor.stop.remote()

    def stopping(self) -> bool:
        return self._answer(self.actor.stopping.remote(), False)

    def _answer(self, reference: Any, otherwise: Any) -> Any:
        try:
            return ray.get(reference, timeout=10)
        except RayError:
            return otherwise
