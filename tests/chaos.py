"""Chaos: runs whose actors, workers and drivers are killed at random moments, then the same command until it ends.

`python -m tests.chaos --seeds 20 --rows 300` prints a table of faults and results; exit status 1 if a row was lost,
doubled or made otherwise.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from torch import Tensor

from pipeline.check import check_output
from pipeline.config import RunConfig
from pipeline.machinery import Machinery
from pipeline.run import RunError, run_job
from tests.cheap import FACTS, machinery_of, zeros

KILLS = ("an actor", "a worker", "the driver")
_ATTEMPTS = 20
_SECONDS_A_CALL = 0.1


@dataclass
class Story:
    """What one seed's run lived through."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kills = ", ".join(f"{self.kills[name]:>2} x {name}" for name in KILLS)
        return f"seed {self.seed:>3}: {kills}; {self.attempts} attempts; {'; '.join(self.problems) or 'content'}"


def write_rows(path: Path, rows: int) -> str:
    pq.write_table(pa.table({"id": [f"r{index}" for index in range(rows)], "prompt": ["x"] * rows}), path)
    return str(path)


def pictures_of(output: Path) -> dict[str, str]:
    table = pads.dataset(output / "data", format="parquet").to_table(columns=["id", "sha256"])
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def disturbed(seed: int, folder: Path, manifest: str, expected: dict[str, str], kills: int, seconds: float) -> Story:
    """Run until the end, with `kills` kills on the way; undisturbed it takes so many seconds."""
    chance, story, output = random.Random(seed), Story(seed), folder / f"out-{seed}"
    while story.attempts < _ATTEMPTS:
        story.attempts += 1
        with open(folder / f"log-{seed}", "ab") as log:
            run = subprocess.Popen([*RUN, manifest, str(output)], stdout=log, stderr=log, start_new_session=True)
        while run.poll() is None:
            time.sleep(chance.uniform(0.02, 0.15) * seconds if story.kills.total() < kills else 0.2)
            if run.poll() is None and story.kills.total() < kills and (output / "run.json").exists():
                _kill(run, chance, story)
        if run.returncode == 0:
            break
    else:
        story.problems.append("never ended")
    audit = check_output(str(output), manifest)
    story.problems += audit.problems
    if pictures_of(output) != expected:
        story.problems.append("the pictures differ from the undisturbed run's")
    return story


def _kill(run: subprocess.Popen[bytes], chance: random.Random, story: Story) -> None:
    """SIGKILL somebody of this run, if there is one of the kind that is drawn."""
    try:
        children = psutil.Process(run.pid).children(recursive=True)
        workers = [(child, "".join(child.cmdline()[:1])) for child in children]
    except psutil.Error:
        return
    victims = {
        "an actor": [child for child, title in workers if title.startswith("ray::MapWorker")],
        "a worker": [child for child, title in workers if title.startswith("ray::")],
        "the driver": [psutil.Process(run.pid)],
    }
    (kind,) = chance.choices(KILLS, (3, 2, 1))
    try:
        chance.choice(victims[kind]).kill()
    except (psutil.Error, IndexError):
        return
    story.kills[kind] += 1


def run_here(manifest: str, output: str) -> int:
    """One attempt, on a Ray of its own; two actors, small parts."""
    config = RunConfig(task="generate", manifest=manifest, output=output, actors=2, lanes=4, patience=120)
    try:
        print(run_job(config, load=_load, checkpoint=FACTS))
    except RunError as error:
        print(error)
        return 1
    return 0


def _load(config: RunConfig, device: str) -> Machinery:
    """The cheap model, slow enough to be killed while it works."""

    def slow(*arguments: Any) -> Tensor:
        time.sleep(_SECONDS_A_CALL)
        return zeros(*arguments)

    return machinery_of(config, slow)


RUN = (sys.executable, "-m", "tests.chaos", "--run")


def chaos(seeds: range, rows: int, kills: int, folder: Path) -> Iterator[Story]:
    """The stories of runs that were disturbed by so many kills each, as they end."""
    manifest = write_rows(folder / "manifest.parquet", rows)
    started = time.monotonic()
    subprocess.run([*RUN, manifest, str(folder / "whole")], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    expected = pictures_of(folder / "whole")
    assert len(expected) == rows
    for seed in seeds:
        yield disturbed(seed, folder, manifest, expected, kills, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs=2, metavar=("MANIFEST", "OUTPUT"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    if options.run:
        return run_here(*options.run)
    faults = wrong = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for story in chaos(range(options.seeds), options.rows, options.kills, Path(folder)):
            print(story, flush=True)
            faults += story.kills.total()
            wrong += bool(story.problems)
    print(f"{faults} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
