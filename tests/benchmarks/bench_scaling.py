"""The efficiency of 1, 2, 4, ... actors with a simulated network that takes a fixed time and no CPU.

`python -m tests.benchmarks.bench_scaling --actors 1 2 4 8` prints for each the rows per second and the efficiency: the
fraction of the time in which the networks ran, from when the last actor was ready to the last row. If there are more
actors than CPUs, each gets a fraction of a CPU: `--actors 64 --seconds 4 --calls 100` runs on two cores, and takes
minutes to start.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from pipeline.config import RunConfig
from pipeline.inference.loaded_model import LoadedModel
from pipeline.run.job import run_job
from tests.chaos.stories import write_rows
from tests.cheap import FACTS, loaded_model_of, zeros

LANES = 4
CPUS = 20
"""The number of CPUs that Ray assumes, independent of the machine; the networks need none."""
SECONDS = "LATENTMILL_BENCH_SECONDS"
"""The environment variable with the seconds per call of the network."""


def load(config: RunConfig, device: str) -> LoadedModel:
    """Return the cheap model with a network that sleeps; each call is recorded in a file of its process."""
    calls = Path(f"{config.output}.calls")
    calls.mkdir(exist_ok=True)

    def slow(*arguments: Any) -> Tensor:
        start = time.time()
        time.sleep(float(os.environ[SECONDS]))
        with open(calls / str(os.getpid()), "a") as file:
            file.write(json.dumps([start, time.time()]) + "\n")
        return zeros(*arguments)

    return loaded_model_of(config, slow)


def efficiency(calls: dict[str, list[tuple[float, float]]], actors: int) -> tuple[float, float]:
    """Return the fraction of the time in which the networks ran, and that time, once all actors were ready."""
    assert len(calls) == actors, f"{len(calls)} of {actors} actors had rows"
    start = max(first for (first, _), *_ in calls.values())
    end = max(last for *_, (_, last) in calls.values())
    busy = sum(max(0.0, last - max(first, start)) for spans in calls.values() for first, last in spans)
    return busy / (actors * (end - start)), end - start


def measure(folder: Path, actors: int, calls_per_actor: int) -> None:
    rows = actors * calls_per_actor * LANES
    manifest = write_rows(folder / f"{actors}.parquet", rows)
    config = RunConfig(
        task="generate", manifest=manifest, output=str(folder / f"out-{actors}"), actors=actors, lanes=LANES
    )
    run_job(config, load=load, checkpoint=FACTS)
    calls: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for file in Path(f"{config.output}.calls").iterdir():
        calls[file.name] = [tuple(json.loads(line)) for line in file.read_text().splitlines()]
    fraction, seconds = efficiency(calls, actors)
    rate = fraction * actors * LANES / float(os.environ[SECONDS])
    print(f"{actors:>6} {rows:>8,} {seconds:>8.1f} s {rate:>8.1f} rows/s {fraction:>8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--calls", type=int, default=60, help="calls per actor")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds per call, which finishes 4 rows")
    options = parser.parse_args()
    os.environ[SECONDS] = str(options.seconds)  # before Ray starts: its workers inherit it
    print(f"{'actors':>6} {'rows':>8} {'time':>10} {'rate':>15} {'efficiency':>8}")
    ray.init(
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"num_workers_soft_limit": CPUS},  # otherwise Ray stops idle workers when actors have most CPUs
    )
    with tempfile.TemporaryDirectory() as folder:
        for actors in options.actors:
            measure(Path(folder), actors, options.calls)


if __name__ == "__main__":
    main()
