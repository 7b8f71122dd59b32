"""One cluster of three nodes with a Jobs server for all tests in this folder."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from cluster.local import LocalCluster, down, up


@pytest.fixture(scope="package")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    name = f"tests-{tmp_path_factory.getbasetemp().name}"
    up(name, nodes=3, cpus=2, object_store_mib=80)
    yield LocalCluster.load(name)
    cluster = LocalCluster.load(name)  # a test may have killed nodes and added others
    assert down(name)
    deadline = time.monotonic() + 20
    while (commands := _running_commands(cluster)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert commands == []


def _running_commands(cluster: LocalCluster) -> list[str]:
    """Return the command lines of the cluster's processes that are still running."""
    commands: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) in cluster.nodes and process.info["cmdline"]:
                commands.append(" ".join(process.info["cmdline"]))
    return commands
