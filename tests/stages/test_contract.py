"""Stages declare their columns: each runs with exactly those that it needs, and returns those that it declares."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import RunConfig, Task
from pipeline.errors import StageError
from pipeline.images.encode import encode_image
from pipeline.manifest.rules import Rules
from pipeline.stages.classify import Classify
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from tests.cheap import load_cheap

PNG = encode_image(np.full((64, 64, 3), (200, 30, 60), np.uint8))


def config_for(tmp_path: Path, task: Task) -> RunConfig:
    clip = {"model": "shapes-clip", "labels": ("a", "b")} if task == "classify" else {}
    return RunConfig(task=task, manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"), **clip)


def exactly(table: pa.Table, columns: StageColumns) -> pa.Table:
    return table.select([name for name in table.column_names if name in columns.needs])


def names_of(columns: StageColumns, given: pa.Table | None = None) -> set[str]:
    """The columns that a stage returns for those that it is given, or else for exactly those that it needs."""
    return (set(columns.needs if given is None else given.column_names) | set(columns.adds)) - columns.removes


def manifest_of(task: Task) -> pa.Table:
    rows: dict[str, Any] = {"id": ["a", "b"], "prompt": ["x", "y"], "label": [1, 2]}
    if task != "generate":
        rows |= {"image": [PNG, PNG]}
    if task == "inpaint":
        rows |= {"mask": [PNG, PNG]}
    return pa.table(rows)


@pytest.mark.parametrize("task", ["generate", "inpaint", "upscale", "classify"])
def test_each_stage_runs_with_exactly_the_columns_that_it_declares(tmp_path: Path, task: Task) -> None:
    config, manifest = config_for(tmp_path, task), manifest_of(task)
    prepare = PrepareRows(config=config, rules=Rules(task=task), manifest=manifest.schema, square=64)
    prepared = prepare(manifest)
    assert set(prepared.column_names) == names_of(prepare.columns, manifest)
    if task == "classify":
        classify = Classify(config, "run", "cpu", lambda amounts: None)
        labeled = classify(exactly(prepared, classify.columns))
        assert set(labeled.column_names) == names_of(classify.columns)
        return
    denoise = Denoise(config, "run", "cpu", lambda amounts: None, load_cheap)
    bare = exactly(prepared, denoise.columns)
    assert set(denoise(bare).column_names) == names_of(denoise.columns)
    encode = EncodeImages(config=config, manifest=manifest.schema)
    encoded = encode(exactly(denoise(prepared), encode.columns))
    denoise.close()
    assert encoded["error_type"].to_pylist() == [None, None]
    assert set(encoded.column_names) == names_of(encode.columns)


class Forgetful:
    """Loses its last row, or a column."""

    columns = StageColumns(needs=frozenset({"id"}), adds={"made": pa.int64()})

    def stopping(self) -> bool:
        return False


def test_a_lost_row_a_missing_column_and_an_undeclared_one_are_refused() -> None:
    table = pa.table({"id": ["a", "b"]})

    def with_column(name: str, table: pa.Table) -> pa.Table:
        return table.append_column(name, pa.array([0] * table.num_rows))

    assert run_stage(Forgetful(), lambda table: with_column("made", table), table).num_rows == 2
    with pytest.raises(StageError, match="Forgetful got 2 rows and returned 1"):
        run_stage(Forgetful(), lambda table: with_column("made", table.slice(1)), table)
    with pytest.raises(StageError, match="Forgetful needs the columns id"):
        run_stage(Forgetful(), lambda table: table, pa.table({"name": ["a"]}))
    with pytest.raises(StageError, match="declares other columns than it returns: made, other"):
        run_stage(Forgetful(), lambda table: with_column("other", table), table)
