"""A takeover during a slow commit: the old run writes nothing any more, whichever attempt it is at."""

from typing import Any

import pytest

from pipeline import storage
from pipeline.output.ledger import read_entries
from pipeline.output.sink import LedgerDatasink
from pipeline.storage import files
from tests.output.rows import MANIFEST, datasink, encoded_rows


@pytest.fixture
def fence(output: str) -> str:
    return f"{output}/lease/00000002.json"


def fenced_sink(output: str, fence: str) -> LedgerDatasink:
    return LedgerDatasink(output, MANIFEST, lambda amounts: None, fence=fence)


def take_over_during(folder: str, output: str, fence: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let another run take the output over and commit row "a" while the first attempt at a file of a folder fails."""
    attempts: list[str] = []
    if output.startswith("s3://"):
        target, name, position = storage.locate(output)[0], "pipe_file", 0
    else:
        target, name, position = files, "replace_local_file", 0
    write = getattr(target, name)

    def slow_write(*arguments: Any, **options: Any) -> Any:
        path = str(arguments[position])
        if f"/{folder}/" in path and not attempts:
            attempts.append(path)
            storage.write_bytes(fence, b"{}")
            datasink(output).write([encoded_rows(["a"])], None)
            raise TimeoutError("the request timed out")
        return write(*arguments, **options)

    monkeypatch.setattr(target, name, slow_write)
    return attempts


@pytest.mark.parametrize("folder", ["failed", "data", "ledger"])
def test_a_takeover_between_two_attempts_ends_the_commit(
    output: str, fence: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        attempts = take_over_during(folder, output, fence, patched)
        with pytest.raises(storage.StorageError, match="another run has taken this output over"):
            fenced_sink(output, fence).write([encoded_rows(["a", "b", "c"], failed=("c",))], None)
    assert len(attempts) == 1
    assert [row_id for entry in read_entries(output) for row_id in entry["id"].to_pylist()] == ["a"]


def test_a_timeout_without_a_takeover_is_tried_again(output: str, fence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([TimeoutError("the request timed out"), None])
    exists = files._is_there

    def unsteady(url: str) -> bool:
        if url == fence and (error := next(failures, None)):
            raise error
        return exists(url)

    monkeypatch.setattr(files, "_is_there", unsteady)
    assert fenced_sink(output, fence).write([encoded_rows(["a"])], None) == (1, 0)
