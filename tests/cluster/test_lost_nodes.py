"""A job on three nodes whose actor, node and driver are killed loses no row."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import local
from cluster.local import LocalCluster
from jobs import cli
from pipeline.output.audit import check_output
from pipeline.output.ledger import read_ledger

ROWS = 64


@pytest.mark.slow
def test_a_job_that_loses_an_actor_a_node_and_its_driver_loses_no_row(
    three_nodes: LocalCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = str(tmp_path / "m.parquet")
    ids = [f"r{index}" for index in range(ROWS)]
    pq.write_table(pa.table({"id": ids, "prompt": ["a red circle"] * ROWS}), manifest)

    def submit(output: str, *options: str) -> None:
        command = [*options, "--", "generate", manifest, str(tmp_path / output), "--actors", "2"]
        status = cli.run(["submit", "--address", three_nodes.jobs_url, *command])
        assert status == 0, "".join(capfd.readouterr())

    submit("whole", "--follow")
    output = str(tmp_path / "out")

    def committed() -> int:
        return read_ledger(output).ok

    submit("out")
    wait_for(lambda: committed() > 0, "first part")
    kill(lambda title: title.startswith("ray::MapWorker"), three_nodes)
    before = committed()
    wait_for(lambda: committed() > before, "part after an actor was killed")
    local.kill_node(three_nodes.name)
    before = committed()
    wait_for(lambda: committed() > before, "part after a node was killed")
    kill(lambda title: title.startswith("python -m jobs.cli") and title.endswith(f" {output}"), three_nodes)
    assert committed() < ROWS, "the driver was killed too late"
    local.add_node(three_nodes.name)
    submit("out", "--follow")
    assert "rows were there already" in capfd.readouterr().out

    assert check_output(output, manifest).problems == []
    assert image_hashes(tmp_path / "out") == image_hashes(tmp_path / "whole")


def wait_for(condition: Callable[[], bool], event: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {event} in {seconds} s"
        time.sleep(0.1)


def kill(matches: Callable[[str], bool], cluster: LocalCluster) -> None:
    """SIGKILL the cluster's processes with a matching title; waits until there is one."""

    def killed() -> bool:
        processes = [p for p in psutil.process_iter() if matches(_title(p)) and _belongs_to(cluster, p)]
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        return bool(processes)

    wait_for(killed, "process to kill", 20)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _belongs_to(cluster: LocalCluster, process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(parent.pid in cluster.nodes for parent in process.parents())
    return False


def image_hashes(output: Path) -> dict[str, str]:
    table = pq.read_table(output / "data", columns=["id", "sha256"])
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
