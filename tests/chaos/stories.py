"""Stories: a run per seed, with random faults, until it is complete; and what is wrong with its output."""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.output.audit import check_output
from pipeline.output.ledger import read_ledger
from pipeline.output.run_record import read_run
from tests.chaos.attempt import Attempt
from tests.chaos.environments import ENVIRONMENTS, Environment

_ATTEMPTS: Final = 20
_FAULTS: Final[dict[str, tuple[int, Callable[[Attempt], bool]]]] = {
    "an actor killed": (3, lambda attempt: attempt.kill("ray::MapWorker")),
    "a worker killed": (2, lambda attempt: attempt.kill("ray::")),
    "the driver killed": (1, Attempt.kill_driver),
    "a clock jumped": (1, Attempt.jump_clock),
}
"""Faults of every environment with their weights; the faults of the environment weigh _ENVIRONMENT_WEIGHT in total."""
_ENVIRONMENT_WEIGHT: Final = 6


@dataclass
class Story:
    """The faults and the result of one seed's run."""

    seed: int
    environment: str
    faults: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {name}" for name, count in self.faults.items())
        ending = "; ".join(self.problems) or "complete"
        effort = f"{self.attempts} attempts, {self.seconds:.0f} s"
        return f"seed {self.seed:>3}, {self.environment}: {faults}; {effort}; {ending}"


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
    chance, started = random.Random(story.seed), time.monotonic()
    weight = _ENVIRONMENT_WEIGHT / max(len(environment.faults), 1)
    kinds = _FAULTS | {name: (weight, fault) for name, fault in environment.faults.items()}
    hosts = 0
    while story.attempts < _ATTEMPTS:
        story.attempts += 1
        earlier = read_run(environment.output).get("attempt", 0)
        command = [environment.manifest, environment.output, *([environment.address] if environment.address else [])]
        log = folder / f"log-{story.seed}"
        attempt = Attempt(command, environment.variables, log, chance, environment.clocks, environment.address, hosts)
        attempt.start()
        while attempt.process.poll() is None:
            wanted = story.faults.total() < faults
            time.sleep(chance.uniform(0.02, 0.15) * seconds if wanted else 0.2)
            if wanted and attempt.process.poll() is None and _is_running(environment, earlier):
                (name,) = chance.choices(list(kinds), [weight for weight, _ in kinds.values()])
                if kinds[name][1](attempt):
                    story.faults[name] += 1
        environment.repair(environment)
        hosts = attempt.hosts
        if attempt.process.returncode == 0 and read_ledger(environment.output).ok == len(expected):
            break
    else:
        story.problems.append("did not finish")
    story.problems += check_output(environment.output, environment.manifest).problems
    if image_hashes(environment.output) != expected:
        story.problems.append("the images differ from those of the run without faults")
    story.seconds = time.monotonic() - started


def _is_running(environment: Environment, earlier: int) -> bool:
    """Return whether run.json says that an attempt after `earlier` is running."""
    run = read_run(environment.output)
    return run.get("attempt", 0) > earlier and run.get("status") == "running"


def chaos(seeds: range, rows: int, faults: int, folder: Path, environments: tuple[str, ...] = ()) -> Iterator[Story]:
    """Yield the story of each run, which had this many faults; the seeds take turns at the environments."""
    names = environments or tuple(ENVIRONMENTS)
    manifest = write_rows(folder / "manifest.parquet", rows)
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.chaos", "--run", manifest, str(folder / "reference")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    expected = image_hashes(str(folder / "reference"))
    assert len(expected) == rows
    for seed in seeds:
        story = Story(seed, names[seed % len(names)])
        with ENVIRONMENTS[story.environment](folder, manifest, seed) as environment:
            run_with_faults(story, environment, folder, expected, faults, seconds)
        yield story


def table_of(stories: list[Story]) -> str:
    """Return the faults of all stories by kind, as a Markdown table."""
    faults = sum((story.faults for story in stories), Counter[str]())
    lines = ["| fault | times |", "|---|---|", *(f"| {name} | {count} |" for name, count in faults.most_common())]
    return "\n".join([*lines, f"| all, over {len(stories)} runs | {faults.total()} |"])
