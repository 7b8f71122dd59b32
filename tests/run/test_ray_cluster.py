"""The resources that Ray reserves for the actors."""

import pytest

from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.run.cluster import plan_actors
from tests.cheap import FACTS

RUN = {"task": "generate", "manifest": "m.parquet", "output": "out"}


@pytest.mark.parametrize(("cpus", "actors"), [(20, 64), (20, 3), (4, 4), (2, 5)])
def test_plan_actors_cpus_leave_one_or_a_fifth_to_the_other_stages(cpus: int, actors: int) -> None:
    found = plan_actors(RunConfig(**RUN, actors=actors, threads=8), FACTS, {"CPU": cpus})
    left = cpus - found.count * found.cpus
    assert found.count == actors
    assert left >= max(1, cpus / 5)
    assert left < max(1, cpus / 5) + 0.01 * actors or found.cpus == 8


def test_more_actors_than_gpus_hold_is_one_clear_line() -> None:
    with pytest.raises(RunError, match="3 actors need 3 GPUs; the cluster has 2: give --device cpu, fewer actors"):
        plan_actors(RunConfig(**RUN, actors=3), FACTS, {"CPU": 8, "GPU": 2})
    half = plan_actors(RunConfig(**RUN, gpus_per_actor=0.5), FACTS, {"CPU": 8, "GPU": 2})
    assert (half.count, half.gpus, half.device) == (4, 0.5, "cuda")
