"""The lease on an output: it has one holder, it expires, and a holder notices that it lost its lease."""

import json
import multiprocessing
import subprocess
import time
from pathlib import Path

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


def move_to_another_machine(output: str) -> None:
    """Change the lease so that its holder seems to run on another machine."""
    [url] = storage.list_files(f"{output}/lease")
    owner = json.loads(storage.read_bytes(url))
    storage.write_bytes(url, json.dumps({**owner, "host": "another"}).encode())


def test_a_second_run_is_refused_until_the_first_releases_the_lease(output: str) -> None:
    first, second = lease_on(output), lease_on(output)
    first.acquire()
    with pytest.raises(OutputBusyError, match="another run writes here"):
        second.acquire()
    second.release()  # it was never acquired
    with pytest.raises(OutputBusyError):
        lease_on(output).acquire()
    first.release()
    second.acquire()
    assert first.is_taken() and not second.is_taken()
    second.release()


def test_a_lease_without_heartbeats_from_another_machine_expires(output: str) -> None:
    first = Lease(output, heartbeat_seconds=1000)
    first.acquire()
    move_to_another_machine(output)
    second = Lease(output, heartbeat_seconds=0.1, expiry_seconds=0.3)
    second.acquire()
    assert storage.exists(first.next_url) and not storage.exists(second.next_url)
    second.release()


def test_a_lease_with_heartbeats_from_another_machine_is_respected(output: str) -> None:
    first = lease_on(output)
    first._owner["host"] = "another"
    first.acquire()
    with pytest.raises(OutputBusyError, match="on another"):
        lease_on(output).acquire()
    first.release()


def test_a_holder_notices_that_its_lease_was_taken(tmp_path: Path) -> None:
    first = lease_on(str(tmp_path))
    first.acquire()
    storage.write_bytes(first.next_url, b"{}")
    deadline = time.monotonic() + 10
    while not first.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.lost


def test_a_suspended_holder_finds_in_storage_that_its_lease_was_taken(tmp_path: Path) -> None:
    first = Lease(str(tmp_path))
    first.acquire()
    assert not first.is_taken()
    storage.write_bytes(first.next_url, b"{}")
    assert first.is_taken() and not first.lost
    first.release()


def test_a_suspended_holder_finds_the_takeover_after_several_runs(output: str) -> None:
    suspended = Lease(output, heartbeat_seconds=1000)
    suspended.acquire()
    suspended._owner["host"] = "another"
    storage.write_bytes(suspended._url(1), suspended._content())
    for _ in range(3):
        later = Lease(output, heartbeat_seconds=0.1, expiry_seconds=0.3)
        later.acquire()
        later.release()
    assert suspended.is_taken() and storage.exists(suspended.next_url)


def hold(output: str) -> None:
    Lease(output).acquire()


def test_the_lease_of_a_dead_process_on_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path),))
    process.start()
    process.join()
    started = time.monotonic()
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert time.monotonic() - started < 5
    lease.release()


def test_a_killed_process_counts_as_dead_before_its_parent_reaps_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert lease._process_start_time(process.pid) is not None
        process.kill()
        deadline = time.monotonic() + 10
        while (dead := lease._process_start_time(process.pid)) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert dead is None and Path(f"/proc/{process.pid}").exists()
