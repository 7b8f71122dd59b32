"""Jobs on a real cluster of three nodes: submit, follow, list, stop, go on."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local import LocalCluster
from jobs import cli
from pipeline.output.ledger import read_ledger
from tests.checkpoints import tiny_checkpoint

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


def run(capfd: Captured, cluster: LocalCluster, name: str, *arguments: str) -> tuple[int, str, str]:
    status = cli.run([name, "--address", cluster.jobs, *arguments])
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def manifest(folder: Path, rows: int, **columns: list[str]) -> str:
    ids = [f"r{index}" for index in range(rows)]
    pq.write_table(pa.table({"id": ids, "prompt": ["a red circle"] * rows, **columns}), folder / "m.parquet")
    return str(folder / "m.parquet")


def options(model: str, steps: int) -> list[str]:
    return ["--model", model, "--actors", "1", "--lanes", "4", "--num-inference-steps", str(steps)]


def test_a_job_is_followed_to_its_own_exit_status_and_is_told_of_without_its_keys(
    three_nodes: LocalCluster, model: str, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    path = manifest(tmp_path, 4, sampler=["ddim", "ddim", "ddim", "nonsense"])
    command = ["--", "generate", path, f"{tmp_path}/out", "--skip-invalid", *options(model, 2)]
    status, out, err = run(capfd, three_nodes, "submit", "--job-id", "first", "--follow", *command)
    assert status == 3, out + err
    assert "1 rows failed" in out
    assert "AWS_SECRET_ACCESS_KEY" in err
    committed = read_ledger(f"{tmp_path}/out")
    assert (committed.ok, committed.failed) == (3, 1)

    status, out, err = run(capfd, three_nodes, "submit", "--job-id", "first", *command)
    assert (status, out) == (1, "") and "there is a job 'first' already" in err
    status, listed, _ = run(capfd, three_nodes, "list", "--json")
    (row,) = [row for row in json.loads(listed) if row["id"] == "first"]
    assert (row["status"], row["exit_status"]) == ("FAILED", 3)
    assert (row["manifest"], row["output"], row["model"]) == (path, f"{tmp_path}/out", model)
    _, table, _ = run(capfd, three_nodes, "status", "first")
    assert "FAILED" in table
    _, log, _ = run(capfd, three_nodes, "logs", "first")
    assert "1 rows failed" in log
    assert "very-secret" not in listed + table + log + err


def test_a_stopped_job_keeps_what_is_finished_and_the_same_command_goes_on(
    three_nodes: LocalCluster, model: str, tmp_path: Path, capfd: Captured
) -> None:
    rows = 64
    command = ["--", "generate", manifest(tmp_path, rows), f"{tmp_path}/out", *options(model, 12)]
    assert run(capfd, three_nodes, "submit", "--job-id", "long", *command)[0] == 0
    ledger = tmp_path / "out" / "ledger"
    deadline = time.monotonic() + 120
    while not (ledger.is_dir() and any(ledger.glob("*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    status, out, err = run(capfd, three_nodes, "stop", "long")
    assert (status, out) == (0, "Job long is stopped\n"), err
    kept = read_ledger(f"{tmp_path}/out").ok
    assert 0 < kept < rows
    status, out, err = run(capfd, three_nodes, "submit", "--follow", *command)
    assert status == 0, out + err
    made = pq.read_table(tmp_path / "out" / "data")["id"].to_pylist()
    assert sorted(made) == sorted(f"r{index}" for index in range(rows))
    assert "rows were there already" in out


def test_what_is_not_there_is_said_in_one_line(three_nodes: LocalCluster, capfd: Captured) -> None:
    for name in ("status", "logs", "stop"):
        status, out, err = run(capfd, three_nodes, name, "nobody")
        assert (status, out) == (1, "")
        assert "there is no job 'nobody'" in err and len(err.splitlines()) == 1
    status = cli.run(["list", "--address", "http://127.0.0.1:9"])
    err = capfd.readouterr().err
    assert status == 1 and "no Ray Jobs server answers" in err and len(err.splitlines()) == 1
