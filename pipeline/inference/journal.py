"""The journal of rows in flight: identifies rows that crash their process, and says when the run stops."""

from collections.abc import Sequence
from typing import Final, Protocol

MAX_DEATHS: Final = 3


class RowJournal(Protocol):
    """The journal as the stages see it: a Journal in this process, or in other processes."""

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]: ...
    def update(self, caller: str, *, done: Sequence[str], started: Sequence[str], wait: bool) -> None: ...
    def stopping(self) -> bool: ...


class Journal:
    """Which rows are in flight, which callers have them, and with how many processes each has died.

    A row that begins again while another caller still has it comes from a process that died: each row that had
    started there has one death more. A row with a death must run with no other row, so that the next death is surely
    its own. In memory, and little larger than what is in flight."""

    def __init__(self) -> None:
        self._caller_of: dict[str, str] = {}
        self._started: set[str] = set()
        self._deaths: dict[str, int] = {}
        self._stopping = False

    def begin(self, caller: str, keys: Sequence[str]) -> dict[str, int]:
        """Give rows to a caller; return the deaths of those that a process had when it died.

        They are 0 for a row that had not started there, as far as this journal knows: the process may have died
        before its last update arrived. When such a row starts, the caller must wait for its update."""
        dead = {self._caller_of[key] for key in keys if key in self._caller_of} - {caller}
        for key in [key for key, owner in self._caller_of.items() if owner in dead]:
            del self._caller_of[key]
            self._deaths[key] = self._deaths.get(key, 0) + (key in self._started)
            self._started.discard(key)
        self._caller_of.update(dict.fromkeys(keys, caller))
        return {key: self._deaths[key] for key in keys if key in self._deaths}

    def update(self, caller: str, *, done: Sequence[str], started: Sequence[str], wait: bool = False) -> None:
        """Note the rows that a caller has finished, and those that it is about to start.

        `wait` is for a journal in another process: the call returns once the journal has it."""
        for key in done:
            if self._caller_of.get(key) == caller:
                del self._caller_of[key]
                self._started.discard(key)
                if not self._deaths.get(key, 1):
                    del self._deaths[key]
        self._started.update(key for key in started if self._caller_of.get(key) == caller)

    def stop(self) -> None:
        """From now on no row starts, and unfinished rows are dropped."""
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping
