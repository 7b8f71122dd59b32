"""The rates of a run, minute by minute, and the time that each part of it took."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.output.provenance import utc_now

SECONDS: Final = {
    "loading": "Time of actors that load their model.",
    "request": "Time of actors that encode prompts and sources.",
    "network": "Time in the U-Net.",
    "decode": "Time of actors that decode latents.",
    "score": "Time of actors that score images against their prompts.",
    "waiting": "Time of actors without rows.",
    "fetch": "Time of fetching and decoding sources.",
    "encode": "Time of encoding images.",
    "write": "Time of writing the output.",
}
"""The parts of a run that are timed, summed over all processes; their totals are `NAME_seconds`."""
RATES: Final = pa.schema(
    [
        ("started_at", pa.timestamp("us", "UTC")),
        ("seconds", pa.float64()),
        ("rows", pa.int64()),
        ("ok", pa.int64()),
        ("failed", pa.int64()),
        ("images_per_second", pa.float64()),
        ("images_per_second_per_actor", pa.float64()),
        ("occupancy", pa.float64()),
        *((f"{name}_seconds", pa.float64()) for name in SECONDS),
    ]
)
"""One row per minute: `rows` left the lanes in it, `ok` and `failed` rows were committed."""

Poll = Callable[[], Mapping[str, float]]


class Rates:
    """Polls the totals of a run, and records their increase per minute."""

    def __init__(self, totals: Poll, actors: int, *, minute: float = 60.0) -> None:
        self.totals, self._actors, self._minute = totals, actors, minute
        self._rows: list[dict[str, Any]] = []
        self._last: Mapping[str, float] = {}
        self._began, self._run_start = utc_now(), time.monotonic()
        self._minute_start = self._run_start

    def poll(self) -> Mapping[str, float]:
        """Return the totals, and end a minute if it is over."""
        totals = self.totals()
        if totals and time.monotonic() - self._minute_start >= self._minute:
            self._end_minute(totals)
        return totals

    def table(self) -> pa.Table:
        """Return the minutes so far; the last one may be shorter."""
        if totals := self.totals():
            self._end_minute(totals)
        return pa.Table.from_pylist(self._rows, RATES)

    def _end_minute(self, totals: Mapping[str, float]) -> None:
        now = time.monotonic()
        grown = {name: totals[name] - self._last.get(name, 0.0) for name in totals}
        rate = grown.get("ok", 0.0) / (now - self._minute_start)
        self._rows.append(
            {
                "started_at": self._began + timedelta(seconds=self._minute_start - self._run_start),
                "seconds": now - self._minute_start,
                **{name: int(grown.get(name, 0)) for name in ("rows", "ok", "failed")},
                "images_per_second": rate,
                "images_per_second_per_actor": rate / self._actors,
                "occupancy": occupancy_of(grown),
                **{f"{name}_seconds": grown.get(f"{name}_seconds", 0.0) for name in SECONDS},
            }
        )
        self._last, self._minute_start = dict(totals), now


def occupancy_of(totals: Mapping[str, float]) -> float:
    """Return the share of lanes that held a row, from 0 to 1."""
    return totals.get("lanes_filled", 0.0) / totals["lanes_run"] if totals.get("lanes_run") else 0.0


def summarize_totals(totals: Mapping[str, float], actors: int, seconds: float) -> dict[str, Any]:
    """Return an attempt's rates and times for run.json.

    The ideal rate assumes that U-Nets never wait and all lanes are full."""
    useful = totals.get("network_seconds", 0.0) * occupancy_of(totals)
    rate = totals.get("ok", 0.0) / seconds
    return {
        "actors": actors,
        "images_per_second": round(rate, 4),
        "images_per_second_per_actor": round(rate / actors, 4),
        "ideal_images_per_second": round(actors * totals.get("ok", 0.0) / useful, 4) if useful else None,
        "occupancy": round(occupancy_of(totals), 4),
        "evaluations": int(totals.get("evaluations", 0)),
        "storage_retries": int(totals.get("storage_retries", 0)),
        "seconds_in": {name: round(totals.get(f"{name}_seconds", 0.0), 3) for name in SECONDS},
    }


def write_rates(output: str, attempt: int, rates: pa.Table) -> None:
    """Write OUTPUT/report/rates-ATTEMPT.parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(rates, sink)
    storage.write_bytes(storage.join(output, "report", f"rates-{attempt:03}.parquet"), sink.getvalue().to_pybytes())
