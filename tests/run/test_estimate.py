"""The estimate of a run: its arithmetic, and the times that it measures."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.inference.loaded_model import LoadedModel
from pipeline.manifest.identity import Shard
from pipeline.run.estimate import Estimate, estimate
from tests.cheap import FACTS, CheapTask, load_cheap

SECONDS = 0.03


class SlowTask(CheapTask):
    """Takes its time for each picture."""

    def decode(self, latents, row, heartbeat) -> np.ndarray:
        time.sleep(SECONDS)
        return super().decode(latents, row, heartbeat)


def load_slow(config: RunConfig, device: str) -> LoadedModel:
    return replace(load_cheap(config, device), task=SlowTask())


def config_for(tmp_path: Path, prompts: list[str]) -> RunConfig:
    table = pa.table({"id": [f"r{index:05}" for index in range(len(prompts))], "prompt": prompts})
    pq.write_table(table, tmp_path / "m.parquet")
    return RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output="", lanes=4)


def test_a_row_takes_the_measured_time_and_nothing_is_written(tmp_path: Path) -> None:
    actual = estimate(config_for(tmp_path, ["x"] * 5000), 8, load=load_slow, checkpoint=FACTS)
    assert (actual.rows, actual.timed, actual.failed) == (5000, 8, 0)
    assert SECONDS <= actual.seconds_per_row < 3 * SECONDS
    assert 50 < actual.bytes_per_row < 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


def test_the_estimate_of_a_shard_counts_its_own_rows(tmp_path: Path) -> None:
    config = config_for(tmp_path, ["x"] * 40)
    shards = [replace(config, shard=Shard(index, 2)) for index in (1, 2)]
    first, second = (estimate(shard, 2, load=load_slow, checkpoint=FACTS).rows for shard in shards)
    assert 0 < first < 40 and first + second == 40


def test_failed_rows_are_counted_and_do_not_lower_the_time_per_row(tmp_path: Path) -> None:
    actual = estimate(config_for(tmp_path, ["x", "x", "refuse", "x", "x"]), 4, load=load_slow, checkpoint=FACTS)
    assert (actual.timed, actual.failed) == (4, 1)
    assert actual.seconds_per_row >= SECONDS
    with pytest.raises(RunError, match="none of 2 rows succeeded: .*refused"):
        estimate(config_for(tmp_path, ["refuse"] * 3), 4, load=load_slow, checkpoint=FACTS)


def test_more_actors_take_less_time_and_nearly_the_same_hours() -> None:
    actual = Estimate(
        rows=36_000, timed=8, failed=0, load_seconds=36, seconds_per_row=1, bytes_per_row=1e6, device="cpu"
    )
    assert actual.hours(1) == pytest.approx(10.01)
    assert actual.hours(10) == pytest.approx(1.01)
    assert actual.actor_hours(10) == pytest.approx(10.1)
    assert actual.output_bytes == 36e9


def test_the_command_says_time_hours_output_and_cost(tmp_path: Path) -> None:
    config = config_for(tmp_path, ["a red circle on a white background"] * 1000)
    arguments = [
        "estimate",
        config.manifest,
        "--num-inference-steps",
        "2",
        "--rows",
        "2",
        "--lanes",
        "2",
        "--price",
        "3",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("2 of 1,000 rows timed on one actor: ")
    assert [line.split()[0] for line in lines[1:]] == ["time", "actor", "output", "cost"]
    assert float(lines[4].split()[1].replace(",", "")) == pytest.approx(
        3 * float(lines[2].split()[2].replace(",", "")), abs=0.02
    )
