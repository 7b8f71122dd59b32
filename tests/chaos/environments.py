"""The storages and clusters that runs write to, each with its own faults."""

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from cluster import local
from cluster.processes import is_running, kill_session
from pipeline import storage
from pipeline.output.audit import check_output
from pipeline.output.ledger import read_entries
from pipeline.output.ledger_repair import repair_output
from tests.chaos.attempt import CLUSTER, EXPIRY_SECONDS, Attempt
from tests.chaos.clock import Clock
from tests.faulty_s3 import FaultyProxy, Kind, Moment, faulty_proxy
from tests.s3 import CREDENTIALS, s3_server

_SMALL_DISK: Final = "16m"
_LEDGER_DISK: Final = "1m"
_STORAGE_FAULTS: Final[dict[str, Kind]] = {
    "503 for seconds": "slow down",
    "lines cut for seconds": "cut",
    "replies lost for seconds": "reply lost",
}


@dataclass
class Environment:
    """A storage that runs write to, and its faults besides the death of a process."""

    manifest: str
    output: str
    clocks: tuple[Clock, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    faults: Mapping[str, Callable[[Attempt], bool]] = field(default_factory=dict)
    """By name; each returns whether it took place."""
    repair: Callable[["Environment"], None] = lambda environment: None
    """Called after an attempt."""


@contextmanager
def on_local_disk(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    output = str(folder / f"out-{seed}")

    def corrupt(attempt: Attempt) -> bool:
        """Change bytes in the middle of a committed file."""
        committed = sorted(file for entry in read_entries(output) for file in entry["file"].unique().to_pylist())
        if not committed:
            return False
        path = Path(output) / attempt.chance.choice(committed)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
        path.write_bytes(content)
        return True

    def repair(environment: Environment) -> None:
        if damaged := check_output(output).damaged_files:
            repair_output(output, damaged)

    faults = {"the driver stalled": Attempt.stall_driver, "a committed file corrupted": corrupt}
    yield Environment(manifest, output, _clocks(folder, seed), faults=faults, repair=repair)


@contextmanager
def on_small_disk(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    """Two small file systems that can be filled, one for the ledger alone; needs root to mount them."""
    disk, output = folder / f"disk-{seed}", folder / f"disk-{seed}" / "out"
    with ExitStack() as stack:
        stack.enter_context(_mounted(disk, _SMALL_DISK))
        stack.enter_context(_mounted(output / "ledger", _LEDGER_DISK))
        ballasts = {"the disk full": disk / "ballast", "the ledger's disk full": output / "ledger" / ".ballast"}
        faults = {name: lambda attempt, path=path: _fill(path) for name, path in ballasts.items()}

        def repair(environment: Environment) -> None:
            for path in ballasts.values():
                path.unlink(missing_ok=True)

        yield Environment(manifest, str(output), _clocks(folder, seed), faults=faults, repair=repair)


@contextmanager
def _mounted(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(ballast: Path) -> bool:
    if ballast.exists():
        return False
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError as error:
            return error.errno == errno.ENOSPC


@contextmanager
def on_object_storage(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    """An S3 server behind a proxy that injects faults, lists new keys late, and can kill the process that writes."""
    with ExitStack() as stack:
        (files := folder / f"s3-{seed}").mkdir()
        server = stack.enter_context(s3_server(files))
        proxy = stack.enter_context(faulty_proxy(server))
        proxy.listing_delay = seed % 3  # seconds
        proxy.checks_dates = True
        stack.enter_context(_environment({**CREDENTIALS, "AWS_ENDPOINT_URL": server}))
        storage.locate("s3://chaos")[0].mkdir("chaos")
        storage.write_bytes("s3://chaos/manifest.parquet", Path(manifest).read_bytes())
        faults: dict[str, Callable[[Attempt], bool]] = {
            name: lambda attempt, kind=kind: _fail_for_seconds(proxy, kind, attempt.chance)
            for name, kind in _STORAGE_FAULTS.items()
        }
        faults["a takeover during a slow commit"] = lambda attempt: _take_over_slow_commit(proxy, attempt)
        for moment in ("before", "within", "after"):
            faults[f"a writer killed {moment} its PUT"] = lambda attempt, moment=moment: _kill_writer(
                proxy, moment, attempt
            )
        variables = {"AWS_ENDPOINT_URL": proxy.url}
        clocks = _clocks(folder, seed)
        yield Environment("s3://chaos/manifest.parquet", "s3://chaos/out", clocks, variables, faults=faults)


def _clocks(folder: Path, seed: int) -> tuple[Clock, ...]:
    return (Clock.create(folder, f"driver-{seed}"),)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment for the duration of a `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _fail_for_seconds(proxy: FaultyProxy, kind: Kind, chance: random.Random) -> bool:
    before = proxy.injected.total()
    with proxy.faulty(kind, chance=chance.uniform(0.3, 1.0)):
        time.sleep(chance.uniform(1.0, 4.0))
    return proxy.injected.total() > before


def _take_over_slow_commit(proxy: FaultyProxy, attempt: Attempt) -> bool:
    """Delay commits for longer than the lease lasts, and let another host take over meanwhile."""
    proxy.ledger_delay = 2 * EXPIRY_SECONDS
    try:
        time.sleep(1.0)  # for commits to begin
        return attempt.take_over()
    finally:
        proxy.ledger_delay = 0.0


def _kill_writer(proxy: FaultyProxy, moment: Moment, attempt: Attempt) -> bool:
    """SIGKILL the process of the next PUT of a data file or ledger entry, at this moment of its request."""
    killed: list[int] = []

    def on_request(method: str, path: str, at: Moment, port: int) -> bool:
        if killed or method != "PUT" or at != moment or not ("/data/" in path or "/ledger/" in path):
            return False
        owner = next((one.pid for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == port), None)
        if owner is None or owner == os.getpid():
            return False
        os.kill(owner, signal.SIGKILL)
        killed.append(owner)
        return True

    proxy.on_request = on_request
    deadline = time.monotonic() + 5
    while not killed and attempt.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    proxy.on_request = lambda method, path, moment, port: False
    return bool(killed)


@contextmanager
def on_cluster(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    """Three nodes, of which each can be lost; a worker node is replaced, the head by a new cluster."""

    def has_head() -> bool:
        return is_running(local.LocalCluster.load(CLUSTER).nodes[0])

    def lose_node(attempt: Attempt) -> bool:
        if not has_head():
            return False
        node = attempt.chance.choice(local.LocalCluster.load(CLUSTER).nodes[1:])
        local.kill_node(CLUSTER, node)
        local.add_node(CLUSTER)
        return True

    def lose_head(attempt: Attempt) -> bool:
        if not has_head():
            return False
        kill_session(local.LocalCluster.load(CLUSTER).nodes[0])
        return True

    def repair(environment: Environment) -> None:
        if not has_head():
            local.down(CLUSTER)
            environment.address = local.up(CLUSTER, nodes=3, cpus=2).address

    of_nodes = Clock.create(folder, f"nodes-{seed}")
    with _environment(of_nodes.variables):  # for the nodes that are started
        cluster = local.up(CLUSTER, nodes=3, cpus=2)
        try:
            clocks = (*_clocks(folder, seed), of_nodes)
            faults = {"a node lost": lose_node, "the head node lost": lose_head}
            output = str(folder / f"out-{seed}")
            yield Environment(manifest, output, clocks, address=cluster.address, faults=faults, repair=repair)
        finally:
            local.down(CLUSTER)


ENVIRONMENTS: Final[Mapping[str, Callable[[Path, str, int], AbstractContextManager[Environment]]]] = {
    "local disk": on_local_disk,
    "object storage": on_object_storage,
    "small disk": on_small_disk,
    "cluster": on_cluster,
}
