"""Rows of any content on real Ray: a row fails alone, and columns of any type reach the output."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.config import RowDefaults, RunConfig
from pipeline.output.audit import check_output
from pipeline.run.job import run_job
from tests.cheap import FACTS, load_faulty

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 12


def manifest() -> pa.Table:
    names = [f"r{index}" for index in range(ROWS)]
    views = pa.array(names).cast(pa.string_view())
    broken = pa.array([b"\xff", *[b"x"] * (ROWS - 1)]).view(pa.string())
    return pa.table(
        {
            "id": views,
            "prompt": pa.array(["poison" if index == 4 else "x" for index in range(ROWS)]).cast(pa.string_view()),
            "seed": pa.array([2**64 - 1 - index for index in range(ROWS)], pa.uint64()),
            "view": views,
            "nested": pa.StructArray.from_arrays([views, pa.nulls(ROWS)], ["name", "nothing"]),
            "lists": pa.array([[index] for index in range(ROWS)], pa.list_view(pa.int32())),
            "not_text": broken,
            "far": pa.array([2**62 // 1000] * ROWS, pa.timestamp("ms", tz="Nowhere/Land")),
            "long": pa.array([2**63 - 1] * ROWS, pa.duration("s")),
            "shelf": pa.array(["top", None] * (ROWS // 2)).dictionary_encode(),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * ROWS, pa.binary(16))),
            "pairs": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int8())),
            "wide": pa.array([10**70] * ROWS, pa.decimal256(76, 2)),
        }
    )


def test_a_run_ends_with_every_row_whatever_its_columns_hold(tmp_path: Path) -> None:
    table = manifest()
    pq.write_table(table, tmp_path / "m.parquet")
    config = RunConfig(
        task="generate",
        manifest=str(tmp_path / "m.parquet"),
        output=str(tmp_path / "out"),
        actors=1,
        lanes=4,
        defaults=RowDefaults(num_inference_steps=1),
    )
    summary = run_job(config, load=load_faulty, checkpoint=FACTS)
    assert (summary.ok, summary.failed) == (ROWS - 1, 1)
    [failed] = pads.dataset(tmp_path / "out" / "failed").to_table().to_pylist()
    assert (failed["id"], failed["error_type"]) == ("r4", "MemoryError")
    written = pads.dataset(tmp_path / "out" / "data", format="parquet").to_table()
    written = written.take(pa.array(sorted(range(ROWS - 1), key=lambda row: int(written["id"][row].as_py()[1:]))))
    rest = [index for index in range(ROWS) if index != 4]
    assert written["seed"].to_pylist() == [2**64 - 1 - index for index in rest]
    assert written["view"].type == pa.string() and written["view"].to_pylist() == [f"r{index}" for index in rest]
    assert written["lists"].to_pylist() == [[index] for index in rest]
    for name in ("far", "long", "shelf", "uuid", "pairs", "wide"):
        expected = table[name].take(pa.array(rest)).combine_chunks()
        assert written[name].combine_chunks().equals(expected) or written[name].to_string() == expected.to_string()
    assert check_output(config.output, config.manifest).count == 0
    again = run_job(config, load=load_faulty, checkpoint=FACTS)
    assert (again.completed, again.already_done) == (0, ROWS)
