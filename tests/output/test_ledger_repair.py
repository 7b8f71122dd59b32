"""Entries that arrive after another run has taken over: none is believed that the data files do not bear out."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipeline import storage
from pipeline.config import RunConfig
from pipeline.output.ledger import encode_entry, entry_url, read_entries, read_ledger
from pipeline.output.ledger_repair import repair_ledger
from pipeline.run.state import read_state
from tests.output.rows import datasink, encoded_rows


def commit(output: str, key: str, ids: list[str], *, status: str = "ok", writes: bool = True) -> None:
    file = f"{'data' if status == 'ok' else 'failed'}/{key}.parquet"
    if writes:
        storage.write_bytes(storage.join(output, file), b"rows")
    storage.write_bytes(entry_url(output, key), encode_entry([{"id": i, "status": status, "file": file} for i in ids]))


def test_an_entry_whose_file_was_deleted_is_removed(tmp_path: Path) -> None:
    output = str(tmp_path)
    commit(output, "a1", ["a", "b"])
    commit(output, "b2", ["c"], writes=False)
    ledger = repair_ledger(output, read_ledger(output))
    assert (ledger.ok, ledger.files) == (2, {"data/a1.parquet"})


def test_of_two_entries_with_one_row_one_is_removed(tmp_path: Path) -> None:
    output = str(tmp_path)
    commit(output, "a1", ["a", "b"])
    commit(output, "b2", ["b", "c"])
    commit(output, "c3", ["d"])
    ledger = repair_ledger(output, read_ledger(output))
    assert (ledger.ok, ledger.files) == (3, {"data/a1.parquet", "data/c3.parquet"})


def test_failed_rows_with_one_id_stay(tmp_path: Path) -> None:
    output = str(tmp_path)
    commit(output, "a1", ["twice", "twice"], status="failed")
    commit(output, "b2", ["twice"], status="failed")
    before = read_ledger(output)
    assert repair_ledger(output, before) is before and before.failed == 3


@pytest.mark.parametrize("good", ["a1", "c3"])  # before the other entry, and after it
def test_a_row_that_is_good_in_one_late_entry_is_not_failed_by_another(tmp_path: Path, good: str) -> None:
    output = str(tmp_path)
    commit(output, good, ["a", "b"])
    commit(output, "b2", ["b"], status="failed")
    ledger = repair_ledger(output, read_ledger(output))
    assert (ledger.ok, ledger.failed, ledger.files) == (2, 0, {f"data/{good}.parquet"})


def test_a_start_lists_the_data_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, manifest = str(tmp_path / "out"), str(tmp_path / "manifest.parquet")
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), manifest)
    commit(output, "a1", ["a", "b"])
    commit(output, "b2", ["c"], writes=False)
    listed: list[str] = []
    list_files = storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda url, *rest: [listed.append(url), list_files(url, *rest)][1])
    ledger = read_ledger(output)
    assert read_state(RunConfig(task="generate", manifest=manifest, output=output)).ledger.ok == ledger.ok - 1
    assert listed.count(f"{output}/data") == 3  # above, at the start, and after its repair


def test_an_entry_that_no_listing_shows_yet_is_found_by_its_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path)
    commit(output, "a1", ["a"])
    commit(output, "b2", ["b"])
    list_files = storage.list_files

    def without_new(url: str, suffix: str = "") -> list[str]:
        return [actual for actual in list_files(url, suffix) if not actual.endswith("ledger/b2.parquet")]

    monkeypatch.setattr(storage, "list_files", without_new)
    assert read_ledger(output).ok == 2


def test_check_takes_damaged_files_out_of_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path)
    sink = datasink(output)
    sink.write([encoded_rows(["a", "b"])], None)
    sink.write([encoded_rows(["c"], failed=("c",))], None)
    [damaged] = [entry["file"][0].as_py() for entry in read_entries(output) if entry.num_rows == 2]
    (tmp_path / damaged).write_bytes(b"damaged")
    assert cli.run(["check", output]) == 3
    assert read_ledger(output).ok == 2
    assert cli.run(["check", output, "--repair"]) == 3
    assert "1 damaged files are out of the ledger" in capsys.readouterr().out
    assert (read_ledger(output).ok, read_ledger(output).failed) == (0, 1)
