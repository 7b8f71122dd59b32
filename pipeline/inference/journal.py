"""The journal of rows in flight: finds the row that kills its process, and tells the stages when to stop."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

MAX_DEATHS: Final = 3


class RowJournal(Protocol):
    """What the stages know of a Journal, here or in an actor."""

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]: ...
    def started(self, caller: str, keys: Sequence[str]) -> None: ...
    def done(self, caller: str, keys: Sequence[str]) -> None: ...
    def stopping(self) -> bool: ...


class Journal:
    """Which rows are being worked on, by whom, and with how many processes each has died.

    A row that comes again while another caller still has it in flight came from a process that died: each row
    that was in flight there has one death more. A row that has any is to be run alone, so that the next death is
    surely its own. One actor of its own in a run; in memory, and no larger than what is in flight."""

    def __init__(self) -> None:
        self._caller_of: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._stopping = False

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        """A caller has got these rows: the deaths of those that have any."""
        dead = {self._caller_of[key] for key in keys if key in self._caller_of} - {caller}
        for key in [key for key, owner in self._caller_of.items() if owner in dead]:
            del self._caller_of[key]
            self._deaths[key] += 1
        return {key: self._deaths[key] for key in keys if key in self._deaths}

    def started(self, caller: str, keys: Sequence[str]) -> None:
        """Rows are about to be worked on."""
        self._caller_of.update(dict.fromkeys(keys, caller))

    def done(self, caller: str, keys: Sequence[str]) -> None:
        for key in keys:
            if self._caller_of.get(key) == caller:
                del self._caller_of[key]

    def stop(self) -> None:
        """From now on no row is begun, and what is not finished is let go."""
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping
