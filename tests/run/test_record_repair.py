"""run.json after a driver that died between its last commit and the record: the next start repairs it."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.errors import ManifestError, RunError
from pipeline.manifest.read import read_schema
from pipeline.output.lease import Lease
from pipeline.output.run_record import RunRecord, read_run
from pipeline.run import job
from pipeline.run.job import run_job
from tests.cheap import FACTS
from tests.output.rows import datasink, encoded_rows


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A manifest of which every row is committed."""
    pq.write_table(pa.table({"id": list("abc"), "prompt": ["x"] * 3, "shelf": pa.nulls(3, pa.int32())}), tmp_path / "m")
    datasink(str(tmp_path / "out")).write([encoded_rows(["a", "b", "c"], failed=("c",))], None)
    return RunConfig(task="generate", manifest=str(tmp_path / "m"), output=str(tmp_path / "out"))


def record_of(config: RunConfig) -> RunRecord:
    record = RunRecord(config=config, run_id="r", attempt=1)
    model = {"name": "tiny", "weights_sha256": "w"}
    manifest = {"rows": 3, "sha256": None}
    record.start(manifest=manifest, model=model, clip=None, device="cpu", dtype="float32", actors=1)
    return record


@pytest.mark.parametrize("status", ["running", "failed", "stopped", "incomplete"])
def test_the_next_start_records_that_the_run_is_finished(config: RunConfig, status: str) -> None:
    record = record_of(config)
    if status in ("failed", "stopped"):
        record.stop(status, "no progress for 600 seconds")  # type: ignore[arg-type]
    elif status == "incomplete":
        record.finish(complete=False, ok=1, failed=0, last_attempt={"completed": 1})
    with pytest.raises(ManifestError, match="has not finished"):
        read_schema(config.output)
    summary = run_job(config, checkpoint=FACTS)
    run = read_run(config.output)
    assert (run["status"], run["ok"], run["failed"], run["run_id"]) == ("finished", 2, 1, "r")
    assert "reason" not in run and run["model"]["name"] == "tiny"
    assert (summary.completed, summary.ok, summary.failed) == (0, 2, 1)
    assert "id" in read_schema(config.output).names, "a chained run accepts it"


def test_a_record_that_is_right_is_left_unchanged(config: RunConfig) -> None:
    record_of(config).finish(complete=True, ok=2, failed=1, last_attempt={"completed": 3})
    before = (Path(config.output) / "run.json").read_bytes()
    run_job(config, checkpoint=FACTS)
    assert (Path(config.output) / "run.json").read_bytes() == before


def test_a_run_that_was_taken_over_records_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    record_of(config)
    monkeypatch.setattr(Lease, "is_taken", lambda self: True)
    with pytest.raises(RunError, match="another run has taken this output over"):
        job.run_job(replace(config), checkpoint=FACTS)
    assert json.loads((Path(config.output) / "run.json").read_text())["status"] == "running"
