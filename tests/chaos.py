"""Chaos: runs with random faults, restarted by the same command until they finish.

`python -m tests.chaos --seeds 20 --rows 300` prints a line per run and a table of the faults; exit status 1 if a row
was lost, duplicated or has another image. The seeds take turns at ENVIRONMENTS, each of which has its own faults.
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

ENVIRONMENTS: Final = ("local disk", "object storage", "small disk", "cluster")
RUN: Final = (sys.executable, "-m", "tests.chaos", "--run")
_ATTEMPTS: Final = 20
_SECONDS_PER_CALL: Final = 0.1
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
    """The faults and the result of one seed's run."""

    seed: int
    environment: str
    faults: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in self.faults.items())
        ending = "; ".join(self.problems) or "complete"
        return f"seed {self.seed:>3}, {self.environment}: {faults}; {self.attempts} attempts; {ending}"


@dataclass
class Environment:
    """A storage that runs write to, and its faults besides the death of a process."""

    manifest: str
    output: str
    variables: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    faults: Mapping[str, Callable[["Attempt"], bool]] = field(default_factory=dict)
    """By name; each returns whether it took place."""
    repair: Callable[[], None] = lambda: None
    """Called after an attempt."""


@dataclass
class Attempt:
    """One run of the command."""

    process: "subprocess.Popen[bytes]"
    chance: random.Random
    address: str | None

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """Return the processes of this run's Ray with their titles."""
        roots = [self.process.pid] if self.address is None else local.LocalCluster.load(_CLUSTER).nodes
        workers: list[tuple[psutil.Process, str]] = []
        for root in roots:
            with suppress(psutil.Error):
                workers += [(child, _title(child)) for child in psutil.Process(root).children(recursive=True)]
        return workers

    def kill(self, prefix: str) -> bool:
        """SIGKILL a busy process whose title starts with a prefix; return whether there was one."""
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
"""Faults of every environment with their weights; the faults of the environment weigh _ENVIRONMENT_WEIGHT in total."""
_ENVIRONMENT_WEIGHT: Final = 6


def write_rows(path: Path, rows: int) -> str:
    pq.write_table(pa.table({"id": [f"r{index}" for index in range(rows)], "prompt": ["x"] * rows}), path)
    return str(path)


def image_hashes(output: str) -> dict[str, str]:
    filesystem, path = storage.arrow_filesystem(storage.join(output, "data"))
    table = pads.dataset(path, filesystem=filesystem, format="parquet").to_table(columns=["id", "sha256"])
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def run_with_faults(
    story: Story, environment: Environment, folder: Path, expected: dict[str, str], faults: int, seconds: float
) -> None:
    """Run until the end with this many faults on the way; without faults it takes `seconds`."""
    chance = random.Random(story.seed)
    kinds = KILLS | {
        name: (_ENVIRONMENT_WEIGHT // len(environment.faults) or 1, fault) for name, fault in environment.faults.items()
    }
    while story.attempts < _ATTEMPTS:
        story.attempts += 1
        earlier = read_run(environment.output).get("attempt", 0)
        command = [
            *RUN,
            environment.manifest,
            environment.output,
            *([environment.address] if environment.address else []),
        ]
        with open(folder / f"log-{story.seed}", "ab") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **environment.variables}, stdout=log, stderr=log, start_new_session=True
            )
        attempt = Attempt(process, chance, environment.address)
        while process.poll() is None:
            wanted = story.faults.total() < faults
            time.sleep(chance.uniform(0.02, 0.15) * seconds if wanted else 0.2)
            if wanted and process.poll() is None and _is_running(environment, earlier):
                (name,) = chance.choices(list(kinds), [weight for weight, _ in kinds.values()])
                if kinds[name][1](attempt):
                    story.faults[name] += 1
        environment.repair()
        if process.returncode == 0:
            break
    else:
        story.problems.append("did not finish")
    story.problems += check_output(environment.output, environment.manifest).problems
    if image_hashes(environment.output) != expected:
        story.problems.append("the images differ from those of the run without faults")


def _is_running(environment: Environment, earlier: int) -> bool:
    """Return whether run.json says that an attempt after `earlier` is running."""
    run = read_run(environment.output)
    return run.get("attempt", 0) > earlier and run.get("status") == "running"


@contextmanager
def on_local_disk(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    yield Environment(manifest, str(folder / f"out-{seed}"))


@contextmanager
def on_small_disk(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    """A small file system that can be filled; needs root to mount it."""
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
        yield Environment(manifest, str(disk / "out"), faults=faults, repair=lambda: ballast.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def on_object_storage(folder: Path, manifest: str, seed: int) -> Iterator[Environment]:
    """An S3 server behind a proxy that injects faults and can kill the process that writes."""
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
            name: lambda attempt, kind=kind: _fail_for_seconds(proxy, kind, attempt.chance)
            for name, kind in _STORAGE_FAULTS.items()
        }
        for moment in ("before", "within", "after"):
            faults[f"a writer killed {moment} its PUT"] = lambda attempt, moment=moment: _kill_writer(
                proxy, moment, attempt
            )
        variables = {"AWS_ENDPOINT_URL": proxy.url}
        yield Environment("s3://chaos/manifest.parquet", "s3://chaos/out", variables, faults=faults)


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def _fail_for_seconds(proxy: FaultyProxy, kind: Kind, chance: random.Random) -> bool:
    before = proxy.injected.total()
    with proxy.faulty(kind, chance=chance.uniform(0.3, 1.0)):
        time.sleep(chance.uniform(1.0, 4.0))
    return proxy.injected.total() > before


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
    """Three nodes; any but the head can be lost, and is then replaced."""
    cluster = local.up(_CLUSTER, nodes=3, cpus=2)

    def lose_node(attempt: Attempt) -> bool:
        node = attempt.chance.choice(local.LocalCluster.load(_CLUSTER).nodes[1:])
        local.kill_node(_CLUSTER, node)
        local.add_node(_CLUSTER)
        return True

    try:
        faults = {"a node lost": lose_node}
        yield Environment(manifest, str(folder / f"out-{seed}"), address=cluster.address, faults=faults)
    finally:
        local.down(_CLUSTER)


_OPEN: Final = {
    "local disk": on_local_disk,
    "object storage": on_object_storage,
    "small disk": on_small_disk,
    "cluster": on_cluster,
}


def run_attempt(manifest: str, output: str, address: str | None = None) -> int:
    """Run one attempt on a local Ray or on the one at the address, with two actors."""
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
    """Load the cheap model, slowed down so that it can be killed while it works."""

    def slow(*arguments: Any) -> Tensor:
        time.sleep(_SECONDS_PER_CALL)
        return zeros(*arguments)

    return loaded_model_of(config, slow)


def chaos(
    seeds: range, rows: int, faults: int, folder: Path, environments: tuple[str, ...] = ENVIRONMENTS
) -> Iterator[Story]:
    """Yield the story of each run, which had this many faults."""
    manifest = write_rows(folder / "manifest.parquet", rows)
    started = time.monotonic()
    subprocess.run([*RUN, manifest, str(folder / "reference")], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    expected = image_hashes(str(folder / "reference"))
    assert len(expected) == rows
    for seed in seeds:
        story = Story(seed, environments[seed % len(environments)])
        with _OPEN[story.environment](folder, manifest, seed) as environment:
            run_with_faults(story, environment, folder, expected, faults, seconds)
        yield story


def table_of(stories: list[Story]) -> str:
    """Return the faults of all stories by kind, as a Markdown table."""
    faults = sum((story.faults for story in stories), Counter[str]())
    lines = ["| fault | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in faults.most_common())]
    return "\n".join([*lines, f"| all, over {len(stories)} runs | {faults.total()} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar="MANIFEST OUTPUT [ADDRESS]", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--faults", type=int, default=6, help="faults per run")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=ENVIRONMENTS)
    options = parser.parse_args()
    if options.run:
        return run_attempt(*options.run)
    stories: list[Story] = []
    seeds = range(options.first, options.first + options.seeds)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for story in chaos(seeds, options.rows, options.faults, Path(folder), tuple(options.environments)):
            print(story, flush=True)
            stories.append(story)
    print(table_of(stories))
    wrong = sum(bool(story.problems) for story in stories)
    print(f"{wrong} of {len(stories)} runs were incomplete or differed in the end")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
