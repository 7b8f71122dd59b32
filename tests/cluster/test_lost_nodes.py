"""A job on three nodes, its code and model sent along, that loses an actor, a node and its driver, and no row."""

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
    wait_for(lambda: committed() > 0, "a first part")
    kill(lambda title: title.startswith("ray::MapWorker"), three_nodes)
    before = committed()
    wait_for(lambda: committed() > before, "a part after the loss of an actor")
    local.kill_node(three_nodes.name)
    before = committed()
    wait_for(lambda: committed() > before, "a part after the loss of a node")
    kill(lambda title: title.startswith("python -m jobs.cli") and title.endswith(f" {output}"), three_nodes)
    assert committed() < ROWS, "the driver was to be lost on the way"
    local.add_node(three_nodes.name)
    submit("out", "--follow")
    assert "rows were there already" in capfd.readouterr().out

    assert check_output(output, manifest).problems == []
    assert pictures(tmp_path / "out") == pictures(tmp_path / "whole")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.1)


def kill(is_it: Callable[[str], bool], cluster: LocalCluster) -> None:
    """SIGKILL the cluster's processes with such a title, until there was one."""

    def killed() -> bool:
        found = [process for process in psutil.process_iter() if is_it(_title(process)) and _is_of(cluster, process)]
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return bool(found)

    wait_for(killed, "a process to kill", 20)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_of(cluster: LocalCluster, process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(parent.pid in cluster.nodes for parent in process.parents())
    return False


def pictures(output: Path) -> dict[str, str]:
    table = pq.read_table(output / "data", columns=["id", "sha256"])
    return dict(zip(table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
