"""Figures of a run: what stages add up, and Ray's metrics of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ray.util.metrics import Counter

from pipeline.run.rates import SECONDS


class Figures:
    """Adds up what stages and sink say that they did; one actor of its own in a run."""

    def __init__(self) -> None:
        self._amounts: dict[str, float] = {}

    def add(self, amounts: Mapping[str, float]) -> None:
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0) + amount

    def total(self) -> dict[str, float]:
        return dict(self._amounts)


@dataclass(frozen=True)
class Reporter:
    """Tells the figures' actor, and does not wait for it. Here, so that the processes that hold one import little."""

    figures: Any

    def __call__(self, amounts: Mapping[str, float]) -> None:
        self.figures.add.remote(dict(amounts))


METRICS: Final = {
    "rows": "Rows that left the lanes.",
    "ok": "Pictures committed.",
    "failed": "Failed rows committed.",
    "prepared": "Rows whose pictures were fetched and decoded.",
    "evaluations": "Calls of the U-Net.",
    "lanes_filled": "Lanes of these calls that held a row.",
    "lanes_run": "Lanes of these calls, empty ones included.",
    **{f"{name}_seconds": text for name, text in SECONDS.items()},
    "out_of_memory": "Calls of the U-Net that did not fit into memory, and were made again in parts.",
    "gpu_memory_bytes": "The most GPU memory that each process's tensors took at once, of all processes together.",
    "hung_calls": "Calls of the U-Net that hung: their processes were ended.",
    "storage_retries": "Faults of storage that passed.",
}
"""What Ray's metrics tell of a run, as `ray_latentmill_NAME`, tagged with the run's id."""


class MeteredFigures(Figures):
    """Figures that Ray's dashboard and Prometheus see as well."""

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
