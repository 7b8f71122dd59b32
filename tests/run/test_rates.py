"""Rates: what totals grew by, minute by minute."""

import itertools
from datetime import timedelta

import pytest

from pipeline.output.provenance import utc_now
from pipeline.run import rates
from pipeline.run.rates import Rates, summarize_totals


def test_each_minute_holds_what_it_grew_by() -> None:
    totals = {"ok": 0.0, "rows": 0.0, "lanes_filled": 0.0, "lanes_run": 0.0, "network_seconds": 0.0}
    measured = Rates(lambda: totals, actors=2, minute=0.0)
    for _ in range(3):
        totals = {name: amount + 4 for name, amount in totals.items()}
        measured.poll()
    minutes = measured.table().to_pylist()
    assert [minute["ok"] for minute in minutes] == [4, 4, 4, 0]
    assert [minute["network_seconds"] for minute in minutes] == [4, 4, 4, 0]
    assert [minute["occupancy"] for minute in minutes] == [1, 1, 1, 0]
    assert all(a["started_at"] <= b["started_at"] for a, b in itertools.pairwise(minutes))
    assert minutes[0]["images_per_second"] == 2 * minutes[0]["images_per_second_per_actor"]


def test_minutes_follow_one_another_when_the_wall_clock_jumps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Rates(lambda: {"ok": 1.0}, actors=1, minute=0.0)
    measured.poll()
    monkeypatch.setattr(rates, "utc_now", lambda: utc_now() - timedelta(hours=5))
    measured.poll()
    first, second, _ = measured.table().to_pylist()
    passed = second["started_at"] - first["started_at"]
    assert passed.total_seconds() == pytest.approx(first["seconds"], abs=1e-5)


def test_totals_that_cannot_be_read_end_no_minute() -> None:
    measured = Rates(lambda: {}, actors=1, minute=0.0)
    measured.poll()
    assert measured.table().num_rows == 0


def test_the_ideal_is_a_network_that_never_waits_with_all_lanes_full() -> None:
    totals = {"ok": 100.0, "lanes_filled": 300.0, "lanes_run": 400.0, "network_seconds": 40.0}
    summary = summarize_totals(totals, actors=2, seconds=50.0)
    assert (summary["images_per_second"], summary["images_per_second_per_actor"]) == (2.0, 1.0)
    assert summary["ideal_images_per_second"] == round(2 * 100 / 30, 4)  # 30 s of full lanes, on two actors at once
    assert summary["seconds_in"]["decode"] == 0.0
