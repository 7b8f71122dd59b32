"""How fast a run went, minute by minute, and where its time went."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.output.provenance import utc_now

SECONDS: Final = {
    "loading": "Time in which actors loaded their model.",
    "request": "Time in which actors encoded texts and pictures.",
    "network": "Time in the U-Net.",
    "decode": "Time in which actors decoded latents.",
    "score": "Time in which actors compared pictures with their prompts.",
    "waiting": "Time in which actors had no rows.",
    "fetch": "Time in which sources were fetched and decoded.",
    "encode": "Time in which pictures were encoded.",
    "write": "Time in which parts of the output were written.",
}
"""Where time goes, of all processes together; a figure is `NAME_seconds`."""
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
"""One row a minute. `rows` left the lanes in it, `ok` and `failed` were committed."""

Poll = Callable[[], Mapping[str, float]]


class Rates:
    """Figures that grow, polled now and then: what they grew by in each minute."""

    def __init__(self, poll: Poll, actors: int, *, minute: float = 60.0) -> None:
        self._poll, self._actors, self._minute = poll, actors, minute
        self._rows: list[dict[str, Any]] = []
        self._last: Mapping[str, float] = {}
        self._at, self._started = time.monotonic(), utc_now()

    def poll(self) -> Mapping[str, float]:
        """The figures, as they are."""
        figures = self._poll()
        if figures and time.monotonic() - self._at >= self._minute:
            self._end_minute(figures)
        return figures

    def table(self) -> pa.Table:
        """The minutes so far, the last one as long as it was."""
        if figures := self._poll():
            self._end_minute(figures)
        return pa.Table.from_pylist(self._rows, RATES)

    def _end_minute(self, figures: Mapping[str, float]) -> None:
        at = time.monotonic()
        grown = {name: figures[name] - self._last.get(name, 0.0) for name in figures}
        rate = grown.get("ok", 0.0) / (at - self._at)
        self._rows.append(
            {
                "started_at": self._started,
                "seconds": at - self._at,
                **{name: int(grown.get(name, 0)) for name in ("rows", "ok", "failed")},
                "images_per_second": rate,
                "images_per_second_per_actor": rate / self._actors,
                "occupancy": occupancy_of(grown),
                **{f"{name}_seconds": grown.get(f"{name}_seconds", 0.0) for name in SECONDS},
            }
        )
        self._last, self._at, self._started = dict(figures), at, utc_now()


def occupancy_of(figures: Mapping[str, float]) -> float:
    """The part of the U-Net's evaluations that were some row's own."""
    return figures.get("lanes_filled", 0.0) / figures["lanes_run"] if figures.get("lanes_run") else 0.0


def summary_of(figures: Mapping[str, float], actors: int, seconds: float) -> dict[str, Any]:
    """Where an attempt's time went, and its images a second; ideal: U-Nets that never wait, with all lanes full."""
    own = figures.get("network_seconds", 0.0) * occupancy_of(figures)
    rate = figures.get("ok", 0.0) / seconds
    return {
        "images_per_second": round(rate, 4),
        "images_per_second_per_actor": round(rate / actors, 4),
        "ideal_images_per_second": round(actors * figures.get("ok", 0.0) / own, 4) if own else None,
        "occupancy": round(occupancy_of(figures), 4),
        "seconds_in": {name: round(figures.get(f"{name}_seconds", 0.0), 3) for name in SECONDS},
    }


def write_rates(output: str, attempt: int, rates: pa.Table) -> None:
    """OUTPUT/report/rates-ATTEMPT.parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(rates, sink)
    storage.write_bytes(storage.join(output, "report", f"rates-{attempt:03}.parquet"), sink.getvalue().to_pybytes())
