"""Jobs on a real cluster of three nodes: submit, stop, resume, follow, list."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobSubmissionClient

from cluster.local import LocalCluster
from jobs import cli
from pipeline.output.ledger import LedgerState, read_ledger
from tests.checkpoints import tiny_checkpoint

ROWS = 64
SECRET = "very-secret"

Captured = pytest.CaptureFixture[str]
Completed = subprocess.CompletedProcess[str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as a job: its command, and what is committed when the job was stopped."""

    manifest: str
    output: str
    model: str
    command: list[str]
    stop: Completed
    ledger: LedgerState


def latentmill(cluster: LocalCluster, name: str, *arguments: str) -> Completed:
    command = [sys.executable, "-m", "jobs.cli", name, "--address", cluster.jobs_url, *arguments]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def stopped(three_nodes: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose job was stopped after its first commit; the last of its rows is invalid."""
    folder = tmp_path_factory.mktemp("jobs")
    model = str(tiny_checkpoint(folder / "tiny"))
    ids, samplers = [f"r{index}" for index in range(ROWS)], ["ddim"] * (ROWS - 1) + ["nonsense"]
    manifest, output = str(folder / "m.parquet"), str(folder / "out")
    pq.write_table(pa.table({"id": ids, "prompt": ["a red circle"] * ROWS, "sampler": samplers}), manifest)
    command = ["--", "generate", manifest, output, "--skip-invalid", "--model", model]
    command += ["--actors", "1", "--lanes", "4", "--num-inference-steps", "12"]
    submitted = latentmill(three_nodes, "submit", "--job-id", "long", *command)
    assert submitted.returncode == 0, submitted.stderr
    client, deadline = JobSubmissionClient(three_nodes.jobs_url), time.monotonic() + 120
    while not any((folder / "out" / "ledger").glob("*.parquet")) and time.monotonic() < deadline:
        assert not client.get_job_status("long").is_terminal(), client.get_job_logs("long")
        time.sleep(0.1)
    stop = latentmill(three_nodes, "stop", "long")
    return Run(manifest=manifest, output=output, model=model, command=command, stop=stop, ledger=read_ledger(output))


@pytest.fixture(scope="module")
def resumed(three_nodes: LocalCluster, stopped: Run) -> Completed:
    """The same command, submitted again and followed to its end."""
    return latentmill(three_nodes, "submit", "--job-id", "again", "--follow", *stopped.command)


def test_a_stopped_job_leaves_the_finished_rows_committed(stopped: Run) -> None:
    assert (stopped.stop.returncode, stopped.stop.stdout) == (0, "Job long is stopped\n"), stopped.stop.stderr
    assert 0 < stopped.ledger.ok < ROWS - 1


def test_the_same_command_resumes_a_stopped_job(stopped: Run, resumed: Completed) -> None:
    ids = pq.read_table(f"{stopped.output}/data")["id"].to_pylist()
    assert sorted(ids) == sorted(f"r{index}" for index in range(ROWS - 1))
    assert "rows were there already" in resumed.stdout
    ledger = read_ledger(stopped.output)
    assert (ledger.ok, ledger.failed) == (ROWS - 1, 1)


def test_a_followed_job_ends_with_its_own_exit_status(resumed: Completed) -> None:
    assert resumed.returncode == 3, resumed.stdout + resumed.stderr
    assert "1 rows failed" in resumed.stdout


def test_a_job_is_listed_with_its_arguments_and_without_its_keys(
    three_nodes: LocalCluster, stopped: Run, resumed: Completed
) -> None:
    assert "AWS_SECRET_ACCESS_KEY" in resumed.stderr
    listed = latentmill(three_nodes, "list", "--json").stdout
    (row,) = [row for row in json.loads(listed) if row["id"] == "again"]
    assert (row["status"], row["exit_status"]) == ("FAILED", 3)
    assert (row["manifest"], row["output"], row["model"]) == (stopped.manifest, stopped.output, stopped.model)
    table = latentmill(three_nodes, "status", "again").stdout
    assert "FAILED" in table
    log = latentmill(three_nodes, "logs", "again").stdout
    assert "1 rows failed" in log
    assert SECRET not in listed + table + log + resumed.stdout + resumed.stderr


def test_a_job_id_is_used_once(three_nodes: LocalCluster, stopped: Run) -> None:
    second = latentmill(three_nodes, "submit", "--job-id", "long", *stopped.command)
    assert (second.returncode, second.stdout) == (1, "")
    assert "there is a job 'long' already" in second.stderr


def test_an_unknown_job_or_server_is_reported_in_one_line(three_nodes: LocalCluster, capfd: Captured) -> None:
    for name in ("status", "logs", "stop"):
        status = cli.run([name, "--address", three_nodes.jobs_url, "nobody"])
        captured = capfd.readouterr()
        assert (status, captured.out) == (1, "")
        assert "there is no job 'nobody'" in captured.err and len(captured.err.splitlines()) == 1
    status = cli.run(["list", "--address", "http://127.0.0.1:9"])
    err = capfd.readouterr().err
    assert status == 1 and "no Ray Jobs server answers" in err and len(err.splitlines()) == 1
