"""GPU stage: prompts and seeds to pixels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.errors import Stopped, attempt
from pipeline.inference.journal import Journal, RowJournal
from pipeline.inference.node_cache import UNKNOWN_WEIGHTS, WeightHashes, check_weights
from pipeline.manifest.arrow_values import column_values
from pipeline.manifest.identity import derive_seed
from pipeline.output.provenance import ActorProvenance, provenance_columns, software_versions, utc_now
from pipeline.schema import ACTOR_COLUMNS, DECODED, PARAMETERS, PIXELS
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
        _check_loaded(config, loaded, weights)
        self._lora_sha256, self._embedding_sha256 = loaded.lora_sha256, loaded.embedding_sha256
        self._config, self._report, self._journal = config, report, journal or Journal()
        self._provenance = ActorProvenance(
            task=config.task,
            model=loaded.model,
            weights_sha256=loaded.weights_sha256,
            vae_sha256=loaded.vae_sha256,
            software=software_versions(),
            device=loaded.device,
            dtype=loaded.dtype,
            lanes=config.lanes,
            threads=config.threads,
            run_id=run_id,
        )
        threads, limit = config.threads, config.call_limit
        self._worker = LaneWorker(
            loaded.task, loaded.engine, threads=threads, report=report, journal=self._journal, call_limit=limit
        )

    @property
    def columns(self) -> StageColumns:
        adds = {**ACTOR_COLUMNS, PIXELS: pa.large_binary()}
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
        if all(finished):
            return self._with_outcomes(table, outcomes)
        return self._with_outcomes(table.filter(pa.array(finished, pa.bool_())), list(compress(outcomes, finished)))

    def _rows(self, table: pa.Table, indices: Sequence[int]) -> "list[Row]":
        from pipeline.tasks.rows import Row

        names = [name for name in ("id", *PARAMETERS) if name in table.column_names]
        parameters = {name: column_values(table[name]) for name in names}
        rows: list[Row] = []
        for index in indices:
            values = {name: column[index] for name, column in parameters.items()}
            if values.get("seed") is None:
                values["seed"] = derive_seed(values["id"], self._config.seed)
            image, mask = (_decoded_array(table, name, index) for name in (DECODED["image"], DECODED["mask"]))
            rows.append(Row(**values, pixels=image, mask=None if mask is None else mask[..., 0]))
        return rows

    def _with_outcomes(self, table: pa.Table, outcomes: "Sequence[Outcome | None]") -> pa.Table:
        """Return the table with the outcomes' pixels, parameters and errors; None is the outcome of a failed row."""
        rows = [self._finished(outcome) for outcome in outcomes]
        errors = [row if isinstance(row, Exception) else None for row in rows]
        results = [(None, {}) if row is None or isinstance(row, Exception) else row for row in rows]
        for name in set(_SOURCE_HASHES) & set(table.column_names):
            for (_, provenance), digest in zip(results, table[name].to_pylist(), strict=True):
                provenance[name] = digest
        sizes = [(None, None) if pixels is None else pixels.shape[:2] for pixels, _ in results]
        for (_, provenance), (height, width) in zip(results, sizes, strict=True):
            provenance |= {"height": height, "width": width}
        columns = {name: table[name] for name in table.column_names if name not in DECODED.values()}
        columns |= provenance_columns(self._provenance, [provenance for _, provenance in results])
        columns[PIXELS] = _binary_column([pixels for pixels, _ in results])
        return pa.table(columns | updated_error_columns(table, errors))

    def _finished(self, outcome: "Outcome | None") -> "tuple[NDArray[np.uint8], dict[str, Any]] | Exception | None":
        """Return a row's pixels and the provenance that differs from row to row, or its error."""
        if outcome is None or isinstance(outcome, Exception):
            return outcome
        provenance = attempt(lambda: self._row_provenance(outcome))
        return provenance if isinstance(provenance, Exception) else (outcome.pixels, provenance)

    def _row_provenance(self, result: "RowResult") -> dict[str, Any]:
        values = {**asdict(result.parameters), "seconds": result.seconds, "created_at": utc_now()}
        texts = f"{result.parameters.prompt} {result.parameters.negative_prompt or ''}".lower()
        if words := [name for name in self._embedding_sha256 if name.lower() in texts]:
            values["embeddings"] = [{"name": name, "sha256": self._embedding_sha256[name]} for name in words]
        if used := result.parameters.loras:
            values["loras"] = [lora._asdict() for lora in used]
            values["lora_sha256"] = [self._lora_sha256[lora.name] for lora in used]
        else:
            values["loras"] = None
        if self._score is not None and result.parameters.prompt:
            started = time.perf_counter()
            values["clip_score"] = self._score(result.pixels, result.parameters.prompt)
            self._report({"score_seconds": time.perf_counter() - started})
        return values


def _check_loaded(config: RunConfig, loaded: "LoadedModel", weights: WeightHashes) -> None:
    """Raise CheckpointError if the weights that this node loaded are not the driver's."""
    check_weights(config.model, loaded.weights_sha256, weights.model)
    for name, path in config.loras:
        check_weights(path, loaded.lora_sha256[name], weights.loras.get(name))
    for name, path in config.embeddings:
        check_weights(path, loaded.embedding_sha256[name], weights.embeddings.get(name))


def _decoded_array(table: pa.Table, name: str, index: int) -> NDArray[np.uint8] | None:
    """Return a row's decoded image (H, W, C); None if it has none."""
    image = table[name][index] if name in table.column_names else None
    if image is None or not image.is_valid:
        return None
    levels = np.frombuffer(image["pixels"].as_buffer(), np.uint8).copy()  # torch needs memory of its own
    return levels.reshape(image["height"].as_py(), image["width"].as_py(), -1)


def _binary_column(arrays: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """Return the arrays' bytes as a column; a single array, which may be large, is not copied."""
    given = [np.ascontiguousarray(array).reshape(-1) for array in arrays if array is not None]
    offsets = np.cumsum([0, *(0 if array is None else array.size for array in arrays)], dtype=np.int64)
    data = given[0] if len(given) == 1 else np.concatenate([np.zeros(0, np.uint8), *given])
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)
