"""The resources that Ray reserves for the actors, and the device that a cluster can give them."""

import pytest

from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.run.autoscaler import resources_of_node_types
from pipeline.run.cluster import plan_actors
from tests.cheap import FACTS

RUN = {"task": "generate", "manifest": "m.parquet", "output": "out"}


@pytest.mark.parametrize(("cpus", "actors"), [(20, 64), (20, 3), (4, 4), (2, 5)])
def test_plan_actors_cpus_leave_one_or_a_fifth_to_the_other_stages(cpus: int, actors: int) -> None:
    actual = plan_actors(RunConfig(**RUN, actors=actors, threads=8), FACTS, {"CPU": cpus})
    left = cpus - actual.count * actual.cpus
    assert actual.count == actors
    assert left >= max(1, cpus / 5)
    assert left < max(1, cpus / 5) + 0.01 * actors or actual.cpus == 8


def test_more_actors_than_gpus_hold_is_one_clear_line() -> None:
    with pytest.raises(RunError, match="3 actors need 3 GPUs; the cluster has 2: give --device cpu, fewer actors"):
        plan_actors(RunConfig(**RUN, actors=3), FACTS, {"CPU": 8, "GPU": 2})
    half = plan_actors(RunConfig(**RUN, gpus_per_actor=0.5), FACTS, {"CPU": 8, "GPU": 2})
    assert (half.count, half.gpus, half.device) == (4, 0.5, "cuda")


NODE_TYPES = {
    "max_workers": 6,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 3},
        "cpu": {"resources": {"CPU": 16}},
    },
}


def test_an_autoscaler_that_can_start_gpus_gets_actors_on_gpus() -> None:
    startable = resources_of_node_types(NODE_TYPES)
    assert startable == {"CPU": 4 + 3 * 8 + 6 * 16, "GPU": 6}
    pool = plan_actors(RunConfig(**RUN), FACTS, {"CPU": 4}, startable)
    assert (pool.device, pool.count, pool.max_count) == ("cuda", 1, 6)
    pool = plan_actors(RunConfig(**RUN), FACTS, {"CPU": 12, "GPU": 2}, startable)
    assert (pool.device, pool.count, pool.max_count) == ("cuda", 2, 6)
    pool = plan_actors(RunConfig(**RUN, actors=4), FACTS, {"CPU": 4}, startable)
    assert (pool.count, pool.max_count) == (4, 4)
    with pytest.raises(RunError, match="7 actors need 7 GPUs; the cluster has 6"):
        plan_actors(RunConfig(**RUN, actors=7), FACTS, {"CPU": 4}, startable)


def test_a_cluster_that_does_not_say_what_it_can_start_gets_gpus_if_they_are_asked_for() -> None:
    assert plan_actors(RunConfig(**RUN), FACTS, {"CPU": 4}, {}).device == "cpu"
    pool = plan_actors(RunConfig(**RUN, device="cuda", actors=3), FACTS, {"CPU": 4}, {})
    assert (pool.device, pool.count) == ("cuda", 3)
    with pytest.raises(RunError, match="1 actors need 1 GPUs; the cluster has 0"):
        plan_actors(RunConfig(**RUN, device="cuda"), FACTS, {"CPU": 4})
