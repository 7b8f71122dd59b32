"""run.json: each method of the record writes its status, and keeps what earlier attempts wrote."""

import json
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.output.run_record import RunRecord, read_run

MANIFEST = {"rows": 3, "sha256": "m"}
MODEL = {"name": "tiny", "weights_sha256": "w"}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    config = RunConfig(task="generate", manifest="m.parquet", output=str(tmp_path), address="ray://user:secret@head")
    return RunRecord(config=config, run_id="r", attempt=1)


def start(record: RunRecord, device: str = "cpu") -> None:
    record.start(manifest=MANIFEST, model=MODEL, clip=None, device=device, dtype="float32", actors=2)


def test_the_status_follows_the_run(record: RunRecord) -> None:
    assert read_run(record.config.output) == {}
    start(record)
    run = read_run(record.config.output)
    assert (run["status"], run["attempt"], run["manifest"], run["actors"]) == ("running", 1, MANIFEST, 2)
    record.stop("failed", "the disk is full")
    stopped = read_run(record.config.output)
    assert (stopped["status"], stopped["reason"], stopped["started_at"]) == (
        "failed",
        "the disk is full",
        run["started_at"],
    )
    for complete, status in ((False, "incomplete"), (True, "finished")):
        record.finish(complete=complete, ok=2, failed=1, last_attempt={"completed": 3})
        ended = read_run(record.config.output)
        assert (ended["status"], ended["ok"], ended["failed"], ended["manifest"]) == (status, 2, 1, MANIFEST)
    assert "secret" not in Path(record.url).read_text()


def test_a_start_that_would_change_the_images_is_refused_and_writes_nothing(record: RunRecord) -> None:
    start(record)
    before = Path(record.url).read_bytes()
    with pytest.raises(RunError, match="device is cuda, was cpu; give another OUTPUT, or --new-run to start over"):
        start(record, device="cuda")
    assert Path(record.url).read_bytes() == before


def test_another_run_starts_from_nothing(record: RunRecord) -> None:
    start(record)
    other = RunRecord(config=record.config, run_id="other", attempt=1)
    start(other, device="cuda")
    assert read_run(other.config.output)["device"] == "cuda"


def test_a_damaged_record_is_one_line(record: RunRecord) -> None:
    Path(record.url).write_text(json.dumps({"status": "running"})[:-1])
    with pytest.raises(RunError, match="run.json: is not JSON; delete it, or give another OUTPUT"):
        read_run(record.config.output)
