"""The lease on an output: one run at a time writes to it, and the lease of a dead run expires."""

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

_FOLDER: Final = "lease"
_HEARTBEAT_SECONDS: Final = 5.0
_EXPIRY_SECONDS: Final = 30.0
"""A lease expires if its file does not change for this long: the run that held it is dead."""


class Lease:
    """The lease on an output.

    Leases are numbered files, each created only if it does not exist yet. The highest number is the current lease.
    They are never deleted: a run that was suspended while several others came and went must still find the next one.
    Its holder rewrites the file every few seconds. No clocks are compared: a run that wants the output watches whether
    the file changes or, on the holder's own machine, checks whether the process is alive. A holder whose lease expired
    finds a file with the next number and stops (`lost`)."""

    def __init__(
        self,
        output: str,
        *,
        heartbeat_seconds: float = _HEARTBEAT_SECONDS,
        expiry_seconds: float = _EXPIRY_SECONDS,
    ) -> None:
        self._folder = storage.join(output, _FOLDER)
        self._heartbeat_seconds, self._expiry_seconds = heartbeat_seconds, expiry_seconds
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._owner["started"] = _process_start_time(os.getpid())
        self._number, self._heartbeats = 0, 0
        self._released = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)

    @property
    def next_url(self) -> str:
        """The file that exists once another run has taken over the output."""
        return self._url(self._number + 1)

    def is_taken(self) -> bool:
        """Check in storage whether another run has taken over; a process that was suspended may not know it yet."""
        return self.lost or storage.exists(self.next_url)

    def acquire(self) -> None:
        """Acquire the lease. OutputBusyError if a live run holds it.

        Waits up to `expiry_seconds` if the holder ran on another machine."""
        highest = max(self._numbers(), default=0)
        if highest and self._is_held(highest):
            owner = self._read(highest)
            raise OutputBusyError(
                f"another run writes here (process {owner.get('pid')} on {owner.get('host')}): stop it, or wait"
            )
        self._number = highest + 1
        if not storage.create_bytes(self._url(self._number), self._content()):
            raise OutputBusyError("another run took this output at the same moment")
        self._thread.start()

    def release(self) -> None:
        """Release the lease, so that the next run need not wait; does nothing if it was never acquired."""
        if not self._thread.is_alive():
            return
        self._released.set()
        self._thread.join()
        if not self.lost:
            storage.write_bytes(self._url(self._number), self._content(released=True))

    def _send_heartbeats(self) -> None:
        while not self._released.wait(self._heartbeat_seconds):
            try:
                if storage.exists(self.next_url):
                    self.lost = True
                    return
                self._heartbeats += 1
                storage.write_bytes(self._url(self._number), self._content())
            except storage.StorageError:
                continue  # a transient error: the next heartbeat checks again whether the lease is lost

    def _is_held(self, number: int) -> bool:
        owner = self._read(number)
        if owner.get("released") or not owner:
            return False
        if owner.get("host") == self._owner["host"] and owner.get("started") is not None:
            return _process_start_time(int(owner["pid"])) == owner["started"]
        deadline = time.monotonic() + self._expiry_seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._expiry_seconds / 10))
            if self._read(number) != owner:
                return True
        return False

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({**self._owner, "heartbeats": self._heartbeats, "released": released}).encode()

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(storage.read_bytes(self._url(number)))
        except ValueError:
            return {}

    def _numbers(self) -> list[int]:
        names = [url.rpartition("/")[2].removesuffix(".json") for url in storage.list_files(self._folder, ".json")]
        return [int(name) for name in names if name.isdigit()]

    def _url(self, number: int) -> str:
        return storage.join(self._folder, f"{number:08}.json")


def _process_start_time(pid: int) -> str | None:
    """Return when a process of this machine started (Linux: the boot id and clock ticks since boot).

    Returns None if the process is dead or its start time is unknown. A zombie, killed but not yet reaped by its
    parent, counts as dead."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return None
