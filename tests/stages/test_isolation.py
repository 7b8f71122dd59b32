"""A fault of one row fails that row alone, in whichever stage it happens; a fault of the actor ends the actor."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.request import DenoisingRequest
from pipeline.errors import ActorError, CheckpointError, StageError, StorageUnavailableError
from pipeline.inference.loaded_model import LoadedModel
from pipeline.inference.task import RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.manifest.arrow_values import plain_table, rows_to_json
from pipeline.manifest.rules import Rules
from pipeline.output.ledger import read_ledger
from pipeline.output.sink import LedgerDatasink
from pipeline.stages import encode, prepare
from pipeline.stages.denoise import Denoise
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from pipeline.tasks.rows import PreparedRow, Row
from tests.arrow_columns import columns
from tests.cheap import CheapTask, FaultyTask, load_cheap, zeros

ROW_FAULTS = [
    ValueError("this row is refused"),
    IndexError("list index out of range"),
    AttributeError("no such thing"),
    ZeroDivisionError("division by zero"),
    AssertionError("never"),
    RecursionError("too deep"),
    MemoryError("cannot allocate 3 TiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB"),
    OSError(36, "File name too long"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    pa.ArrowNotImplementedError("no kernel"),
]
ENDS = [CheckpointError("no unet"), StageError("a bug"), StorageUnavailableError("s3://out: 503"), ActorError("gone")]
IDS = ["a", "poison", "c", "d", "e"]


def config_for(folder: Path) -> RunConfig:
    (folder / "m.parquet").touch()
    return RunConfig(task="generate", manifest=str(folder / "m.parquet"), output=str(folder / "out"), model="none")


def manifest_of(**more: Any) -> pa.Table:
    return pa.table({"id": IDS, "prompt": IDS, "seed": range(5), **more})


def committed(folder: Path, table: pa.Table, load: Any = load_cheap) -> tuple[set[str], dict[str, str]]:
    """Take rows through all stages and the sink; return the ids of the good rows, and the failed rows' reasons."""
    config = config_for(folder)
    denoise = Denoise(config, "run", "cpu", lambda amounts: None, load)
    try:
        rows = PrepareRows(config=config, rules=Rules(), manifest=table.schema)(table)
        rows = EncodeImages(config=config, manifest=table.schema)(denoise(rows))
    finally:
        denoise.close()
    LedgerDatasink(config.output, table.schema, lambda amounts: None).write([rows], None)
    ledger = read_ledger(config.output)
    good, failed = (
        [] if not (folder / "out" / name).exists() else rows_of(folder, name) for name in ("data", "failed")
    )
    assert (ledger.ok, ledger.failed) == (len(good), len(failed))
    return {row["id"] for row in good}, {row["id"]: f"{row['error_type']}: {row['error_message']}" for row in failed}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    columns = ["id"] if name == "data" else None
    return pads.dataset(folder / "out" / name, format="parquet").to_table(columns=columns).to_pylist()


@pytest.mark.parametrize("fault", ROW_FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("method", ["prepare", "request", "decode"])
def test_any_exception_of_a_task_fails_its_row(tmp_path: Path, method: str, fault: Exception) -> None:
    def load(config: RunConfig, device: str) -> LoadedModel:
        return replace(load_cheap(config, device), task=FaultyTask(method, fault))

    good, failed = committed(tmp_path, manifest_of(), load)
    assert good == {"a", "c", "d", "e"}
    assert list(failed) == ["poison"] and failed["poison"].startswith(type(fault).__name__)


@pytest.mark.parametrize("fault", ENDS, ids=lambda fault: type(fault).__name__)
def test_what_every_row_would_meet_ends_the_actor(tmp_path: Path, fault: Exception) -> None:
    def load(config: RunConfig, device: str) -> LoadedModel:
        return replace(load_cheap(config, device), task=FaultyTask("decode", fault))

    with pytest.raises(ActorError, match=str(fault)):
        committed(tmp_path, manifest_of(), load)
    assert not (tmp_path / "out").exists()


def faulty(function: Callable[..., Any], fault: Exception) -> Callable[..., Any]:
    """The function, which raises if its first argument names the row."""

    def raise_or_call(*arguments: Any, **options: Any) -> Any:
        if "poison" in str(arguments[0] if not isinstance(arguments[0], pa.Table) else arguments[0]["id"].to_pylist()):
            raise fault
        return function(*arguments, **options)

    return raise_or_call


@pytest.mark.parametrize("fault", ROW_FAULTS[::4], ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize(
    ("module", "name"),
    [(prepare, "row_problems"), (prepare, "plain_table"), (encode, "file_name"), (encode, "updated_error_columns")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_any_exception_of_a_cpu_stage_fails_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fault: Exception
) -> None:
    monkeypatch.setattr(module, name, faulty(getattr(module, name), fault))
    good, failed = committed(tmp_path, manifest_of())
    assert good == {"a", "c", "d", "e"}
    assert list(failed) == ["poison"] and failed["poison"].startswith(type(fault).__name__)


@pytest.mark.parametrize("fault", ENDS, ids=lambda fault: type(fault).__name__)
def test_a_cpu_stage_raises_what_every_row_would_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(encode, "file_name", faulty(encode.file_name, fault))
    with pytest.raises(type(fault)):
        committed(tmp_path, manifest_of())


def test_a_source_that_is_never_served_fails_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(url: str, **options: Any) -> bytes:
        raise StorageUnavailableError(f"{url}: 503 (8 attempts)")

    monkeypatch.setattr(storage, "read_bytes", unavailable)
    config = config_for(tmp_path)
    table = manifest_of(image=["x.png", None, None, None, None])
    rows = PrepareRows(config=config, rules=Rules(), manifest=table.schema)(table).to_pylist()
    assert [row["error_type"] for row in rows] == ["StorageError", None, None, None, None]
    assert "503 (8 attempts)" in rows[0]["error_message"]


def large_and_small(error: Exception, limit: int) -> Iterator[Any]:
    """Run a small row, a large one and another small one on a network that takes inputs up to a size."""

    class Sized(CheapTask):
        def request(self, key: Any, row: PreparedRow) -> DenoisingRequest:
            side = int(row.parameters.prompt)
            return replace(super().request(key, row), latents=torch.ones(1, side, side))

    def network(latents: Tensor, *others: Any) -> Tensor:
        if latents.shape[-1] > limit:
            raise error
        return zeros(latents, *others)

    engine = LaneEngine(network, lanes=2, device="cpu", dtype=torch.float32)
    worker = LaneWorker(Sized(), engine, threads=1, report=lambda amounts: None)
    try:
        yield from worker.run([Row(id=side, prompt=side, seed=1) for side in ("8", "128", "8", "128", "8")])
    finally:
        worker.close()


@pytest.mark.parametrize("error", ROW_FAULTS[6:9], ids=lambda fault: type(fault).__name__)
def test_a_row_that_is_too_large_for_the_network_fails_alone(error: Exception) -> None:
    outcomes = list(large_and_small(error, limit=64))
    assert [isinstance(outcome, RowResult) for outcome in outcomes] == [True, False, True, False, True]
    assert outcomes[1] is error


def test_a_network_that_takes_no_size_at_all_ends_the_actor() -> None:
    with pytest.raises(ActorError, match="CUDA out of memory"):
        list(large_and_small(ROW_FAULTS[8], limit=4))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns(rows=5))
def test_carried_columns_of_every_type_reach_the_output(tmp_path_factory: Any, column: pa.Array) -> None:
    folder = tmp_path_factory.mktemp("carried")
    table = manifest_of(carried=column)
    good, failed = committed(folder, table)
    assert good | set(failed) == set(IDS)
    plain = plain_table(table)
    try:
        pq.write_table(plain, folder / "plain.parquet")
        expected = pq.read_table(folder / "plain.parquet")
    except (pa.ArrowException, UnicodeDecodeError):
        assert failed
        return
    assert not failed
    written = pads.dataset(folder / "out" / "data", format="parquet").to_table(columns=["carried"])
    assert written["carried"].type == expected["carried"].type
    assert rows_to_json(written) == rows_to_json(expected.select(["carried"]))
