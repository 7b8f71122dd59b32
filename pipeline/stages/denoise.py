"""GPU stage: prompts and seeds to pixels."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.errors import Stopped
from pipeline.inference.journal import Journal, RowJournal
from pipeline.inference.node_cache import UNKNOWN_WEIGHTS, WeightHashes, check_weights
from pipeline.manifest.identity import derive_seed
from pipeline.output.provenance import ActorProvenance, provenance_columns, software_versions, utc_now
from pipeline.schema import DECODED, PARAMETERS, PIXELS, PROVENANCE
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.loading import report_loading
from pipeline.stages.rows import ERRORS, Report, good_rows, updated_error_columns

if TYPE_CHECKING:  # the CPU stages' processes import this package without torch
    from pipeline.inference.loaded_model import LoadedModel
    from pipeline.inference.task import Outcome, RowResult
    from pipeline.tasks.rows import Row

LoadModel = Callable[[RunConfig, str], "LoadedModel"]
"""Loads a run's model onto "cuda" or "cpu"."""

_SOURCE_HASHES: Final = ("source_sha256", "mask_sha256")


class Denoise:
    """Actor stage: prompts and seeds to pixels, on a model of its own. Safe to call from several threads at once.

    Adds PIXELS, the parameters in force and the provenance; removes the decoded sources. When the run stops, rows that
    are not finished are dropped."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        load: LoadModel | None = None,
        journal: RowJournal | None = None,
        weights: WeightHashes = UNKNOWN_WEIGHTS,
    ) -> None:
        """`weights` are the driver's; CheckpointError if this node's differ."""
        with report_loading(report):
            from pipeline.inference.clip_score import load_clip_scorer
            from pipeline.inference.loaded_model import load_model
            from pipeline.inference.worker import LaneWorker

            loaded = (load or load_model)(config, device)
            self._score = None
            if config.clip_score is not None:
                self._score = load_clip_scorer(config.clip_score, config.threads, device, weights.clip)
        check_weights(config.model, loaded.weights_sha256, weights.model)
        self._config, self._report, self._journal = config, report, journal or Journal()
        self._provenance = ActorProvenance(
            task=config.task,
            model=loaded.model,
            weights_sha256=loaded.weights_sha256,
            software=software_versions(),
            device=loaded.device,
            dtype=loaded.dtype,
            lanes=config.lanes,
            threads=config.threads,
            run_id=run_id,
        )
        self._worker = LaneWorker(
            loaded.task,
            loaded.engine,
            threads=config.threads,
            report=report,
            journal=self._journal,
            call_limit=config.call_limit,
        )

    @property
    def columns(self) -> StageColumns:
        adds = frozenset({PIXELS, "width", "height", *PARAMETERS, *PROVENANCE})
        return StageColumns(needs=frozenset({"id", *ERRORS}), adds=adds, removes=frozenset(DECODED.values()))

    def stopping(self) -> bool:
        return self._journal.stopping()

    def __call__(self, table: pa.Table) -> pa.Table:
        return run_stage(self, self._process, table)

    def close(self) -> None:
        self._worker.close()

    def _process(self, table: pa.Table) -> pa.Table:
        good = good_rows(table)
        outcomes: list[Outcome | None] = [None] * table.num_rows
        for index, outcome in zip(good, self._worker.run(self._rows(table, good)), strict=True):
            outcomes[index] = outcome
        finished = [not isinstance(outcome, Stopped) for outcome in outcomes]
        return self._with_outcomes(table.filter(pa.array(finished, pa.bool_())), list(compress(outcomes, finished)))

    def _rows(self, table: pa.Table, indices: Sequence[int]) -> "list[Row]":
        from pipeline.tasks.rows import Row

        names = ["id", *(name for name in (*PARAMETERS, *DECODED.values()) if name in table.column_names)]
        rows: list[Row] = []
        for values in table.select(names).take(pa.array(indices, pa.int64())).to_pylist():
            image, mask = (values.pop(name, None) for name in (DECODED["image"], DECODED["mask"]))
            if values.get("seed") is None:
                values["seed"] = derive_seed(values["id"], self._config.seed)
            pixels = None if image is None else _array_of(image).reshape(image["height"], image["width"], -1)
            mask = None if mask is None else _array_of(mask).reshape(mask["height"], mask["width"])
            rows.append(Row(**values, pixels=pixels, mask=mask))
        return rows

    def _with_outcomes(self, table: pa.Table, outcomes: "Sequence[Outcome | None]") -> pa.Table:
        """Return the table with the outcomes' pixels, parameters and errors; None is the outcome of a failed row."""
        results = [None if outcome is None or isinstance(outcome, Exception) else outcome for outcome in outcomes]
        errors = [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]
        row_provenance = [{} if result is None else self._row_provenance(result) for result in results]
        for name in set(_SOURCE_HASHES) & set(table.column_names):
            for values, digest in zip(row_provenance, table[name].to_pylist(), strict=True):
                values[name] = digest
        columns = {name: table[name] for name in table.column_names if name not in DECODED.values()}
        columns |= provenance_columns(self._provenance, row_provenance)
        sizes = [(None, None) if result is None else result.pixels.shape[:2] for result in results]
        columns["height"] = pa.array([height for height, _ in sizes], pa.int32())
        columns["width"] = pa.array([width for _, width in sizes], pa.int32())
        columns[PIXELS] = _binary_column([None if result is None else result.pixels for result in results])
        return pa.table(columns | updated_error_columns(table, errors))

    def _row_provenance(self, result: "RowResult") -> dict[str, Any]:
        values = {**asdict(result.parameters), "seconds": result.seconds, "created_at": utc_now()}
        if self._score is not None and result.parameters.prompt:
            started = time.perf_counter()
            values["clip_score"] = self._score(result.pixels, result.parameters.prompt)
            self._report({"score_seconds": time.perf_counter() - started})
        return values


def _array_of(decoded: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(decoded["pixels"], np.uint8).copy()  # torch needs memory of its own


def _binary_column(arrays: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """Return the arrays' bytes as a column; a single array, which may be large, is not copied."""
    given = [np.ascontiguousarray(array).reshape(-1) for array in arrays if array is not None]
    offsets = np.cumsum([0, *(0 if array is None else array.size for array in arrays)], dtype=np.int64)
    data = given[0] if len(given) == 1 else np.concatenate([np.zeros(0, np.uint8), *given])
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)
