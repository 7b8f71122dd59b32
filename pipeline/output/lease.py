"""The lease on an output: one run at a time writes there, and a dead run's lease does not block for ever."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Final

from pipeline import storage
from pipeline.errors import OutputBusyError

FOLDER: Final = "lease"
_BEAT_SECONDS: Final = 5.0
_DEAD_SECONDS: Final = 30.0
"""A lease whose content stands still for so long belongs to a run that is dead."""


class Lease:
    """Leases are numbered files, each created only if it is not there: who holds the highest number holds the output.

    The holder rewrites its file every few seconds. No clocks are compared: a taker watches whether the content moves;
    on the holder's own machine it asks whether the process lives. A holder that was taken for dead finds the next
    number and stops (`lost`)."""

    def __init__(self, output: str, *, beat_seconds: float = _BEAT_SECONDS, dead_seconds: float = _DEAD_SECONDS):
        self._folder = storage.join(output, FOLDER)
        self._beat_seconds, self._dead_seconds = beat_seconds, dead_seconds
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._owner["started"] = _started(os.getpid())
        self._number, self._beats = 0, 0
        self._ended = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @property
    def next_url(self) -> str:
        """The file that exists once another run has taken the output over."""
        return self._url(self._number + 1)

    def is_taken(self) -> bool:
        """Whether another run has the output by now, asked of the storage: a process that was frozen may not know."""
        return self.lost or storage.exists(self.next_url)

    def acquire(self) -> None:
        """Take the output. OutputBusyError: a run that lives holds it. Waits only on what another machine left."""
        highest = self._highest()
        if highest and self._is_held(highest):
            held = self._read(highest)
            raise OutputBusyError(
                f"another run writes here (process {held.get('pid')} on {held.get('host')}): stop it, or wait"
            )
        self._number = highest + 1
        if not storage.create_bytes(self._url(self._number), self._content()):
            raise OutputBusyError("another run took this output at the same moment")
        for number in self._numbers():
            if number < self._number:
                storage.delete(self._url(number))
        self._thread.start()

    def release(self) -> None:
        """Let the next run take the output at once; nothing if it was never ours."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        if not self.lost:
            storage.write_bytes(self._url(self._number), self._content(released=True))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                if storage.exists(self.next_url):
                    self.lost = True
                    return
                self._beats += 1
                storage.write_bytes(self._url(self._number), self._content())
            except storage.StorageError:
                continue  # a fault that passes: whether the lease is lost is seen at the next beat

    def _is_held(self, number: int) -> bool:
        held = self._read(number)
        if held.get("released") or not held:
            return False
        if held.get("host") == self._owner["host"] and held.get("started") is not None:
            return _started(int(held["pid"])) == held["started"]
        deadline = time.monotonic() + self._dead_seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._dead_seconds / 10))
            if self._read(number) != held:
                return True
        return False

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({**self._owner, "report_loading": self._beats, "released": released}).encode()

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(storage.read_bytes(self._url(number)))
        except ValueError:
            return {}

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        names = [url.rpartition("/")[2].removesuffix(".json") for url in storage.list_files(self._folder, ".json")]
        return [int(name) for name in names if name.isdigit()]

    def _url(self, number: int) -> str:
        return storage.join(self._folder, f"{number:08}.json")


def _started(pid: int) -> str | None:
    """When a process of this machine started (Linux: clock ticks after this boot); None if none lives or it is unknown.

    One that was killed and that its parent has not yet asked about is a zombie: it lives no more."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return None
