"""The lease on an output: one holder, a dead one's lease is taken, a holder that was taken for dead notices."""

import json
import multiprocessing
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import OutputBusyError
from pipeline.output import lease
from pipeline.output.lease import Lease


@pytest.fixture(params=["local", "s3", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://lease/{tmp_path.name}"
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/out"


def lease_on(output: str) -> Lease:
    return Lease(output, heartbeat_seconds=0.1, expiry_seconds=1.5)


def elsewhere(output: str, **changes: Any) -> None:
    """Make the lease look like another machine's."""
    [url] = storage.list_files(f"{output}/lease")
    held = json.loads(storage.read_bytes(url))
    storage.write_bytes(url, json.dumps({**held, "host": "another", **changes}).encode())


def test_a_second_run_is_refused_until_the_first_lets_go(output: str) -> None:
    first, second = lease_on(output), lease_on(output)
    first.acquire()
    with pytest.raises(OutputBusyError, match="another run writes here"):
        second.acquire()
    second.release()  # it was never its own
    with pytest.raises(OutputBusyError):
        lease_on(output).acquire()
    first.release()
    second.acquire()
    assert len(storage.list_files(f"{output}/lease")) == 1
    second.release()


def test_a_lease_whose_heart_stands_still_on_another_machine_is_taken(output: str) -> None:
    first = Lease(output, heartbeat_seconds=1000)
    first.acquire()
    elsewhere(output)
    second = lease_on(output)
    second.acquire()
    assert storage.exists(first.next_url) and not storage.exists(second.next_url)
    second.release()


def test_a_beating_lease_of_another_machine_is_respected(output: str) -> None:
    first = lease_on(output)
    first._owner["host"] = "another"
    first.acquire()
    with pytest.raises(OutputBusyError, match="on another"):
        lease_on(output).acquire()
    first.release()


def test_a_holder_that_was_taken_for_dead_notices(tmp_path: Path) -> None:
    first = lease_on(str(tmp_path))
    first.acquire()
    storage.write_bytes(first.next_url, b"{}")
    deadline = time.monotonic() + 10
    while not first.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.lost


def test_a_holder_that_was_frozen_is_told_by_the_storage(tmp_path: Path) -> None:
    first = Lease(str(tmp_path))
    first.acquire()
    assert not first.is_taken()
    storage.write_bytes(first.next_url, b"{}")
    assert first.is_taken() and not first.lost
    first.release()


def hold(output: str) -> None:
    Lease(output).acquire()


def test_a_dead_process_of_this_machine_blocks_nobody(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path),))
    process.start()
    process.join()
    started = time.monotonic()
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert time.monotonic() - started < 5
    lease.release()


def test_a_killed_process_that_nobody_asked_about_is_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert lease._process_start_time(process.pid) is not None
        process.kill()
        deadline = time.monotonic() + 10
        while (dead := lease._process_start_time(process.pid)) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert dead is None and Path(f"/proc/{process.pid}").exists()
