"""The crash journal of a large run: how long actors wait for it.

`python -m tests.benchmarks.bench_journal --actors 1000 --shards 1 16` simulates actors in a few processes: each gets
blocks of 64 rows, finishes a row per second, and asks once a second whether the run stops, as an actor with one image
per second does. It prints for each number of shards how long a row waits (its update is sent), how long a block waits
(its `begin` is answered), and how many rows per second the journal noted."""

import argparse
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import ray

from pipeline.inference.journal import Journal
from pipeline.run.remote_journal import RemoteJournal, _StopFlag

BLOCK = 64
CLIENTS = 4


class _Actor:
    """One simulated actor."""

    def __init__(self, shard: Any) -> None:
        self.name, self.journal, self.flag = uuid.uuid4().hex, RemoteJournal((shard,)), _StopFlag()
        self.rows = self._rows()

    def _rows(self) -> Iterator[list[str]]:
        """Yield the keys of a block to begin, then each of its rows."""
        block = 0
        while True:
            keys = [f"{self.name} {block} {row}" for row in range(BLOCK)]
            yield keys
            yield from ([key] for key in keys)
            block += 1


@ray.remote(num_cpus=0)
class Client:
    """A process with some of the simulated actors."""

    def run(self, shards: list[Any], count: int, seconds: float) -> tuple[list[float], list[float]]:
        """Return the seconds of each update and of each `begin`."""
        actors = [_Actor(shards[index % len(shards)]) for index in range(count)]
        updates, begins, before = list[float](), list[Future[float]](), dict[str, list[str]]()
        end, step = time.monotonic() + seconds, 0
        with ThreadPoolExecutor(count) as threads:
            while time.monotonic() < end:
                due = time.monotonic() + 1 / count
                actor, step = actors[step % count], step + 1
                keys = next(actor.rows)
                if len(keys) > 1:
                    begins.append(threads.submit(_timed_begin, actor, keys))
                else:
                    started = time.perf_counter()
                    done = before.get(actor.name, [])
                    actor.journal.update(actor.name, done=done, started=keys, wait=False)
                    actor.flag.stopping(actor.journal.shards[0])
                    updates.append(time.perf_counter() - started)
                    before[actor.name] = keys
                time.sleep(max(0.0, due - time.monotonic()))
        return updates, [begin.result() for begin in begins]


def _timed_begin(actor: _Actor, keys: list[str]) -> float:
    started = time.perf_counter()
    actor.journal.begin(actor.name, keys)
    return time.perf_counter() - started


def _milliseconds(values: list[float]) -> str:
    cuts = quantiles(values, n=100)
    return f"{1000 * cuts[49]:.2f} / {1000 * cuts[98]:.2f} / {1000 * max(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    print("shards  rows/s  update ms (median / 99 % / most)  begin ms (median / 99 % / most)  drained after s")
    for count in arguments.shards:
        shards: list[Any] = [ray.remote(num_cpus=0)(Journal).remote() for _ in range(count)]  # pyright: ignore
        ray.get([shard.stopping.remote() for shard in shards])
        clients = [Client.remote() for _ in range(CLIENTS)]
        each = arguments.actors // CLIENTS
        results = ray.get([client.run.remote(shards, each, arguments.seconds) for client in clients])  # pyright: ignore
        drained = time.perf_counter()
        ray.get([shard.stopping.remote() for shard in shards])
        drained = time.perf_counter() - drained
        updates = [value for client in results for value in client[0]]
        begins = [value for client in results for value in client[1]]
        rate = len(updates) / arguments.seconds
        print(f"{count:6} {rate:7.0f}  {_milliseconds(updates):>32} {_milliseconds(begins):>32} {drained:16.2f}")
        for actor in [*shards, *clients]:
            ray.kill(actor)


if __name__ == "__main__":
    main()
