"""Chaos: runs to which everything happens that can, at random moments; then the same command until it ends.

`python -m tests.chaos --seeds 20 --rows 300` prints a line a run and a table of the faults; exit status 1 if a row was
lost, doubled or made otherwise. A seed's place is one of PLACES in turn: each has faults of its own.
"""

import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from torch import Tensor

from cluster import local
from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.inference.loaded_model import LoadedModel
from pipeline.output.audit import check_output
from pipeline.output.run_record import read_run
from pipeline.run.job import run_job
from tests.cheap import FACTS, loaded_model_of, zeros
from tests.faulty_s3 import FaultyProxy, Kind, Moment, faulty_proxy
from tests.s3 import CREDENTIALS, s3_server

PLACES: Final = ("local disk", "object storage", "small disk", "cluster")
RUN: Final = (sys.executable, "-m", "tests.chaos", "--run")
_ATTEMPTS: Final = 20
_SECONDS_A_CALL: Final = 0.1
_IDLE: Final = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_SMALL_DISK: Final = "16m"
_CLUSTER: Final = "chaos"
_STORAGE_FAULTS: Final[dict[str, Kind]] = {
    "503 for seconds": "slow down",
    "lines cut for seconds": "cut",
    "replies lost for seconds": "reply lost",
}


@dataclass
class Story:
    """What one seed's run lived through."""

    seed: int
    place: str
    faults: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in self.faults.items())
        ending = "; ".join(self.problems) or "content"
        return f"seed {self.seed:>3}, {self.place}: {faults}; {self.attempts} attempts; {ending}"


@dataclass
class Place:
    """Where runs write, and what can befall them there besides the death of a process."""

    manifest: str
    output: str
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    faults: Mapping[str, Callable[["Attempt"], bool]] = field(default_factory=dict)
    """By name; whether it was done."""
    mend: Callable[[], None] = lambda: None
    """Called when an attempt has ended."""


@dataclass
class Attempt:
    """One run of the command."""

    process: "subprocess.Popen[bytes]"
    chance: random.Random
    address: str | None

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """The processes of this run's Ray, with their titles."""
        roots = [self.process.pid] if self.address is None else local.LocalCluster.load(_CLUSTER).nodes
        found: list[tuple[psutil.Process, str]] = []
        for root in roots:
            with suppress(psutil.Error):
                found += [(child, _title(child)) for child in psutil.Process(root).children(recursive=True)]
        return found

    def kill(self, prefix: str) -> bool:
        """SIGKILL one of the processes whose title begins so, and that has work."""
        victims = [process for process, title in self.workers() if title.startswith(prefix) and title not in _IDLE]
        with suppress(psutil.Error, IndexError):
            self.chance.choice(victims).kill()
            return True
        return False

    def kill_driver(self) -> bool:
        with suppress(psutil.Error):
            psutil.Process(self.process.pid).kill()
            return True
        return False


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1])
    return ""


KILLS: Final[dict[str, tuple[int, Callable[[Attempt], bool]]]] = {
    "an actor killed": (3, lambda attempt: attempt.kill("ray::MapWorker")),
    "a worker killed": (2, lambda attempt: attempt.kill("ray::")),
    "the driver killed": (1, Attempt.kill_driver),
}
"""What can happen anywhere, and how often next to each other. The faults of a place weigh _OWN_WEIGHT in all."""
_OWN_WEIGHT: Final = 6


def write_rows(path: Path, rows: int) -> str:
    pq.write_table(pa.table({"id": [f"r{index}" for index in range(rows)], "prompt": ["x"] * rows}), path)
    return str(path)


def pictures_of(output: str) -> dict[str, str]:
    filesystem, path = storage.arrow_filesystem(storage.join(output, "data"))
    table = pads.dataset(path, filesystem=filesystem, format="parquet").to_table(columns=["id", "sha256"])
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def disturbed(story: Story, place: Place, folder: Path, expected: dict[str, str], faults: int, seconds: float) -> None:
    """Run until the end, with so many faults on the way; undisturbed it takes so many seconds."""
    chance = random.Random(story.seed)
    kinds = KILLS | {name: (_OWN_WEIGHT // len(place.faults) or 1, fault) for name, fault in place.faults.items()}
    while story.attempts < _ATTEMPTS:
        story.attempts += 1
        earlier = read_run(place.output).get("attempt", 0)
        command = [*RUN, place.manifest, place.output, *([place.address] if place.address else [])]
        with open(folder / f"log-{story.seed}", "ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **place.environment}, stdout=log, stderr=log, start_new_session=True
            )
        attempt = Attempt(process, chance, place.address)
        while process.poll() is None:
            wanted = story.faults.total() < faults
            time.sleep(chance.uniform(0.02, 0.15) * seconds if wanted else 0.2)
            if wanted and process.poll() is None and _works(place, earlier):
                (name,) = chance.choices(list(kinds), [weight for weight, _ in kinds.values()])
                if kinds[name][1](attempt):
                    story.faults[name] += 1
        place.mend()
        if process.returncode == 0:
            break
    else:
        story.problems.append("never ended")
    story.problems += check_output(place.output, place.manifest).problems
    if pictures_of(place.output) != expected:
        story.problems.append("the pictures differ from the undisturbed run's")


def _works(place: Place, earlier: int) -> bool:
    """Whether an attempt after that one has begun: it says so in run.json."""
    run = read_run(place.output)
    return run.get("attempt", 0) > earlier and run.get("status") == "running"


@contextmanager
def on_local_disk(folder: Path, manifest: str, seed: int) -> Iterator[Place]:
    yield Place(manifest, str(folder / f"out-{seed}"))


@contextmanager
def on_small_disk(folder: Path, manifest: str, seed: int) -> Iterator[Place]:
    """A file system of its own that fills; root may mount one."""
    disk = folder / f"disk-{seed}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(disk)], check=True)
    ballast = disk / "ballast"

    def fill(attempt: Attempt) -> bool:
        if ballast.exists():
            return False
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError as error:
                return error.errno == errno.ENOSPC

    try:
        faults = {"the disk full": fill}
        yield Place(manifest, str(disk / "out"), faults=faults, mend=lambda: ballast.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def on_object_storage(folder: Path, manifest: str, seed: int) -> Iterator[Place]:
    """An S3 server behind a proxy that fails, and sees which process writes."""
    with ExitStack() as stack:
        (files := folder / f"s3-{seed}").mkdir()
        server = stack.enter_context(s3_server(files))
        proxy = stack.enter_context(faulty_proxy(server))
        before = {name: os.environ.get(name) for name in (*CREDENTIALS, "AWS_ENDPOINT_URL")}
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": server}
        stack.callback(lambda: _restore(before))
        storage.locate("s3://chaos")[0].mkdir("chaos")
        storage.write_bytes("s3://chaos/manifest.parquet", Path(manifest).read_bytes())
        faults: dict[str, Callable[[Attempt], bool]] = {
            name: lambda attempt, kind=kind: _bad_seconds(proxy, kind, attempt.chance)
            for name, kind in _STORAGE_FAULTS.items()
        }
        for moment in ("before", "within", "after"):
            faults[f"a writer killed {moment} its PUT"] = lambda attempt, moment=moment: _kill_writer(
                proxy, moment, attempt
            )
        environment = {"AWS_ENDPOINT_URL": proxy.url}
        yield Place("s3://chaos/manifest.parquet", "s3://chaos/out", environment, faults=faults)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def _bad_seconds(proxy: FaultyProxy, kind: Kind, chance: random.Random) -> bool:
    before = proxy.injected.total()
    with proxy.faulty(kind, chance=chance.uniform(0.3, 1.0)):
        time.sleep(chance.uniform(1.0, 4.0))
    return proxy.injected.total() > before


def _kill_writer(proxy: FaultyProxy, moment: Moment, attempt: Attempt) -> bool:
    """SIGKILL the process that next puts a data file or a ledger entry, at that moment of its request."""
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
def on_cluster(folder: Path, manifest: str, seed: int) -> Iterator[Place]:
    """Three nodes, of which all but the head can be lost; another comes in its place."""
    cluster = local.up(_CLUSTER, nodes=3, cpus=2)

    def lose_node(attempt: Attempt) -> bool:
        node = attempt.chance.choice(local.LocalCluster.load(_CLUSTER).nodes[1:])
        local.kill_node(_CLUSTER, node)
        local.add_node(_CLUSTER)
        return True

    try:
        faults = {"a node lost": lose_node}
        yield Place(manifest, str(folder / f"out-{seed}"), address=cluster.address, faults=faults)
    finally:
        local.down(_CLUSTER)


_AT: Final = {
    "local disk": on_local_disk,
    "object storage": on_object_storage,
    "small disk": on_small_disk,
    "cluster": on_cluster,
}


def run_here(manifest: str, output: str, address: str | None = None) -> int:
    """One attempt, on a Ray of its own or the one at the address; two actors, small parts."""
    config = RunConfig(
        task="generate", manifest=manifest, output=output, actors=2, lanes=4, stall_timeout=120, address=address
    )
    try:
        print(run_job(config, load=_load, checkpoint=FACTS), flush=True)
    except RunError as error:
        print(error, flush=True)
        return 1
    return 0


def _load(config: RunConfig, device: str) -> LoadedModel:
    """The cheap model, slow enough to be killed while it works."""

    def slow(*arguments: Any) -> Tensor:
        time.sleep(_SECONDS_A_CALL)
        return zeros(*arguments)

    return loaded_model_of(config, slow)


def chaos(seeds: range, rows: int, faults: int, folder: Path, places: tuple[str, ...] = PLACES) -> Iterator[Story]:
    """The stories of runs that had so many faults each, as they end."""
    manifest = write_rows(folder / "manifest.parquet", rows)
    started = time.monotonic()
    subprocess.run([*RUN, manifest, str(folder / "whole")], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    expected = pictures_of(str(folder / "whole"))
    assert len(expected) == rows
    for seed in seeds:
        story = Story(seed, places[seed % len(places)])
        with _AT[story.place](folder, manifest, seed) as place:
            disturbed(story, place, folder, expected, faults, seconds)
        yield story


def table_of(stories: list[Story]) -> str:
    """The faults of all stories by kind, in Markdown."""
    faults = sum((story.faults for story in stories), Counter[str]())
    lines = ["| fault | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in faults.most_common())]
    return "\n".join([*lines, f"| all, over {len(stories)} runs | {faults.total()} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar="MANIFEST OUTPUT [ADDRESS]", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--faults", type=int, default=6, help="of each run")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES)
    options = parser.parse_args()
    if options.run:
        return run_here(*options.run)
    stories: list[Story] = []
    seeds = range(options.first, options.first + options.seeds)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for story in chaos(seeds, options.rows, options.faults, Path(folder), tuple(options.places)):
            print(story, flush=True)
            stories.append(story)
    print(table_of(stories))
    wrong = sum(bool(story.problems) for story in stories)
    print(f"{wrong} of {len(stories)} runs were not whole and the same in the end")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
