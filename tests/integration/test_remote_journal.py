"""The crash journal and the totals in actors of their own, several of each."""

import os
import signal
import time
from typing import Any

import pytest
import ray

from pipeline.inference.journal import Journal
from pipeline.run.metrics import RemoteTotals, Totals
from pipeline.run.remote_journal import RemoteJournal

pytestmark = pytest.mark.usefixtures("local_ray")


def actors(kind: type, count: int = 3) -> tuple[Any, ...]:
    return tuple(ray.remote(num_cpus=0)(kind).remote() for _ in range(count))  # pyright: ignore


def test_a_death_is_known_to_the_process_that_repeats_the_task() -> None:
    def die_once(journal: RemoteJournal) -> dict[str, int]:
        """Start row b in a process that dies; return the deaths that its second process learns of."""
        caller = str(os.getpid())
        deaths = journal.begin(caller, ["a", "b", "c"])
        if not deaths:
            journal.update(caller, done=[], started=["a"], wait=False)
            journal.update(caller, done=["a"], started=["b"], wait=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return deaths

    class Dying:
        def run(self, journal: RemoteJournal) -> dict[str, int]:
            return die_once(journal)

    task: Any = ray.remote(num_cpus=0, max_retries=-1)(die_once)
    assert ray.get(task.remote(RemoteJournal(actors(Journal))), timeout=60) == {"b": 1, "c": 0}
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Dying).remote()  # pyright: ignore
    assert ray.get(actor.run.remote(RemoteJournal(actors(Journal))), timeout=60) == {"b": 1, "c": 0}


def test_a_stop_is_known_soon_and_asking_does_not_wait() -> None:
    journal = RemoteJournal(actors(Journal))
    assert not journal.stopping()
    journal.stop()
    deadline, slowest, stopping = time.monotonic() + 20, 0.0, False
    while not stopping and time.monotonic() < deadline:
        time.sleep(0.05)
        started = time.monotonic()
        stopping = journal.stopping()
        slowest = max(slowest, time.monotonic() - started)
    assert stopping and slowest < 0.5


def test_totals_of_several_actors_are_added_up() -> None:
    totals = RemoteTotals(actors(Totals))
    totals({"ok": 2})
    ray.get(totals.shards[0].add.remote({"ok": 3}))
    ray.get([shard.add.remote({"failed": 1}) for shard in totals.shards])
    assert totals.total() == {"ok": 5, "failed": 3}
