"""One cluster of three nodes with a Jobs server for all tests here."""

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
    cluster = up(name, nodes=3, cpus=2, object_store_mib=80)
    yield cluster
    cluster = LocalCluster.of(name)  # a test may have lost nodes and added others
    assert down(name)
    deadline = time.monotonic() + 20
    while (left := _processes_of(cluster)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def _processes_of(cluster: LocalCluster) -> list[str]:
    """The command lines of what still runs of a cluster."""
    left: list[str] = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) in cluster.nodes and process.info["cmdline"]:
                left.append(" ".join(process.info["cmdline"]))
    return left
