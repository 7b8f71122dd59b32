"""A cluster without a GPU node: a run that asks for GPUs waits for one."""

import threading
import time
from dataclasses import replace

import pytest

from cluster import local
from pipeline.config import RunConfig
from pipeline.run.cluster import cluster_for
from tests.cheap import FACTS

GPU_NODE = ["--num-cpus=1", "--num-gpus=2", f"--object-store-memory={80 * 2**20}"]


def test_a_run_that_asks_for_gpus_waits_until_a_node_with_one_joins(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"gpu-{tmp_path_factory.getbasetemp().name}"
    cluster = local.up(name, nodes=1, cpus=1, object_store_mib=80)

    def add_node() -> None:
        time.sleep(5)
        local._start_node(replace(cluster, resources=GPU_NODE), [f"--address={cluster.address}"])

    adding = threading.Thread(target=add_node)
    try:
        adding.start()
        config = RunConfig(task="generate", manifest="m", output="o", device="cuda", address=cluster.address)
        with cluster_for(config, FACTS) as pool:
            assert (pool.device, pool.count, pool.gpus) == ("cuda", 2, 1.0)
        assert "waiting for a node with 1 GPUs" in capsys.readouterr().err
    finally:
        adding.join()
        local.down(name)
