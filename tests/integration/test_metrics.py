"""The Ray metrics of a run."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.run.metrics import METRICS, PublishedTotals

GRAFANA = Path(__file__).parents[2] / "cluster" / "grafana.json"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    panels = json.loads(GRAFANA.read_text())["panels"]
    asked = {
        name for panel in panels for name in re.findall(r"ray_latentmill_(\w+)_total", panel["targets"][0]["expr"])
    }
    assert asked
    assert asked <= set(METRICS)


@pytest.mark.usefixtures("local_ray")
def test_amounts_are_added_up_for_the_run_and_for_prometheus() -> None:
    totals: Any = ray.remote(num_cpus=0)(PublishedTotals).remote("run-7")  # pyright: ignore
    totals.add.remote({"ok": 3, "failed": 0, "unknown": 1})
    totals.add.remote({"ok": 2})
    assert ray.get(totals.total.remote()) == {"ok": 5, "failed": 0, "unknown": 1}
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    line, deadline = None, time.monotonic() + 60
    while line is None and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        ours = (
            line for line in text.splitlines() if line.startswith("ray_latentmill_ok_total{") and 'run="run-7"' in line
        )
        line = next(ours, None)
    assert line is not None
    assert float(line.split()[-1]) == 5
