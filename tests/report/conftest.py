"""A finished run with two images and a failed row."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.manifest.rules import Rules
from pipeline.output.run_record import RunRecord
from pipeline.output.sink import LedgerDatasink
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from tests.cheap import load_cheap


@pytest.fixture
def output(tmp_path: Path) -> Path:
    prompts = ["a red circle", '<script>alert(1)</script> & "quotes"', "refuse"]
    table = pa.table({"id": ["a", "b", "c"], "prompt": prompts})
    pq.write_table(table, tmp_path / "m.parquet")
    config = RunConfig(task="generate", manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "out"), lanes=2)
    denoise = Denoise(config, "run", "cpu", lambda amounts: None, load_cheap)
    images = denoise(PrepareRows(config=config, rules=Rules(task="generate"), manifest=table.schema)(table))
    denoise.close()
    sink = LedgerDatasink(config.output, table.schema, lambda amounts: None)
    sink.write([EncodeImages(config=config, manifest=table.schema)(images)], None)
    record = RunRecord(config=config, run_id="run", attempt=1)
    record.finish(complete=True, ok=2, failed=1, last_attempt={})
    return tmp_path / "out"
