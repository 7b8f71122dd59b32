"""The totals of a run: amounts that stages and sink report, added up and published as Ray metrics."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.metrics import Counter

from pipeline.run.rates import SECONDS


class Totals:
    """Adds up amounts by name."""

    def __init__(self) -> None:
        self._amounts: dict[str, float] = {}

    def add(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0) + amount

    def total(self) -> dict[str, float]:
        return dict(self._amounts)


METRICS: Final = {
    "rows": "Rows that have left the lanes.",
    "ok": "Good rows committed.",
    "failed": "Failed rows committed.",
    "prepared": "Rows whose images have been fetched and decoded.",
    "evaluations": "U-Net calls.",
    "lanes_filled": "Lanes of U-Net calls that held a row.",
    "lanes_run": "Lanes of U-Net calls, empty ones included.",
    **{f"{name}_seconds": text for name, text in SECONDS.items()},
    "out_of_memory": "U-Net calls that did not fit into memory and were repeated in parts.",
    "gpu_memory_bytes": "Peak GPU memory of each process's tensors, summed over all processes.",
    "hung_calls": "U-Net calls that exceeded the call limit, after which their processes were ended.",
    "storage_retries": "Storage requests that were repeated after a transient error.",
}
"""Ray metrics of a run: `ray_latentmill_NAME`, tagged with the run's id."""


class PublishedTotals(Totals):
    """Totals that are also Ray metrics, which Ray's dashboard and Prometheus read. An actor of a run."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._counters = {
            name: Counter(f"latentmill_{name}", description=text, tag_keys=("run",)) for name, text in METRICS.items()
        }
        self._tags = {"run": run_id}

    def add(self, amounts: Mapping[str, float]) -> None:
        super().add(amounts)
        for name, amount in amounts.items():
            if amount > 0 and name in self._counters:
                self._counters[name].inc(amount, self._tags)


_CHOICE: Final = random.random()
"""Which of the shards of its totals this process uses."""


@dataclass(frozen=True)
class RemoteTotals:
    """Totals in Ray actors, of which each process uses one. A call adds amounts without waiting for the actor."""

    shards: tuple[Any, ...]

    def __call__(self, amounts: Mapping[str, float]) -> None:
        self.shards[int(_CHOICE * len(self.shards))].add.remote(dict(amounts))

    def total(self) -> dict[str, float]:
        """Return the totals; none while an actor cannot be reached."""
        total = Totals()
        try:
            for amounts in ray.get([shard.total.remote() for shard in self.shards], timeout=5):
                total.add(amounts)
        except RayError:
            return {}
        return total.total()
