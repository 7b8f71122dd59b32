"""Ctrl-C in a terminal, or SIGTERM: the run stops cleanly, says how to go on, and what is committed stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.ledger import read_ledger
from tests.checkpoints import tiny_checkpoint

ROWS = 96


def processes_of(session: int) -> list[str]:
    listed = subprocess.run(["ps", "-s", str(session), "-o", "args="], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("send", "signal_number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["ctrl-c", "preempted"]
)
def test_an_interrupted_run_stops_cleanly_and_keeps_what_is_committed(
    tmp_path: Path, send: Callable[[int, int], None], signal_number: int
) -> None:
    """A terminal signals the whole foreground group, whoever preempts a pod its first process."""
    model = tiny_checkpoint(tmp_path / "tiny")
    table = pa.table({"id": [f"r{index}" for index in range(ROWS)], "prompt": ["a red circle"] * ROWS})
    pq.write_table(table, tmp_path / "m.parquet")
    options = ["--model", str(model), "--num-inference-steps", "8", "--actors", "1", "--lanes", "4"]
    command = [sys.executable, "-m", "jobs.cli", "generate", f"{tmp_path}/m.parquet", f"{tmp_path}/out", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    ledger = tmp_path / "out" / "ledger"
    deadline = time.monotonic() + 120
    while not (ledger.is_dir() and any(ledger.glob("*.parquet"))) and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    send(run.pid, signal_number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "Run the same command again" in err
    assert "Traceback" not in err and "core_worker" not in err and "raylet" not in err
    assert out == ""
    committed = read_ledger(str(tmp_path / "out"))
    assert 0 < committed.ok < ROWS
    deadline = time.monotonic() + 20
    while processes_of(run.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(run.pid) == []
