"""One cluster of two nodes with a Jobs server for all tests here."""

from collections.abc import Iterator

import pytest

from cluster.local import LocalCluster, down, up


@pytest.fixture(scope="package")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    name = f"tests-{tmp_path_factory.getbasetemp().name}"
    yield up(name, nodes=2, cpus=3, object_store_mib=80)
    assert down(name)
