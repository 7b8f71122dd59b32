"""GPU stage: prompts and seeds to pixels."""

import time
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.errors import Stopped
from pipeline.inference.journal import RowJournal
from pipeline.inference.node_cache import UNKNOWN, Weights, check_weights
from pipeline.manifest.identity import derive_seed
from pipeline.output.provenance import ActorProvenance, provenance_columns, software_versions, utc_now
from pipeline.schema import PARAMETERS, WORKING

if TYPE_CHECKING:
    from pipeline.inference.loaded_model import LoadedModel
    from pipeline.inference.worker import Outcome
from pipeline.errors import describe_error
from pipeline.stages.loading import report_loading
from pipeline.stages.rows import ERRORS, PIXELS, ROW, TAGS, Report

LoadModel = Callable[[RunConfig, str], "LoadedModel"]
"""Loads a run's model onto "cuda" or "cpu"."""


class Denoise:
    """Actor stage: prompts and seeds to pixels, on a model of its own. Safe to call from several threads at once.

    Adds PIXELS, PARAMETERS in force, `width`, `height` and the provenance; takes away what PrepareRows fetched."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        load: LoadModel | None = None,
        journal: RowJournal | None = None,
        weights: Weights = UNKNOWN,
    ) -> None:
        """`weights`: the driver's; CheckpointError if this node's are others."""
        with report_loading(report):
            from pipeline.inference.clip_score import load_score
            from pipeline.inference.loaded_model import load_model
            from pipeline.inference.worker import LaneThread

            machinery = (load or load_model)(config, device)
            self._score = None
            if config.clip_score is not None:
                self._score = load_score(config.clip_score, config.threads, device, weights.clip)
        check_weights(config.model, machinery.weights_sha256, weights.model)
        self._config, self._report = config, report
        self._origin = ActorProvenance(
            task=config.task,
            model=machinery.model,
            weights_sha256=machinery.weights_sha256,
            software=software_versions(),
            device=machinery.device,
            dtype=machinery.dtype,
            lanes=config.lanes,
            threads=config.threads,
            run_id=run_id,
        )
        self._lanes = LaneThread(
            machinery.task,
            machinery.engine,
            threads=config.threads,
            report=report,
            journal=journal,
            call_limit=config.call_limit,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        names = ["id", *(name for name in (*PARAMETERS, "__image", "__mask") if name in table.column_names)]
        good = [index for index, error in enumerate(table["error_type"].to_pylist()) if error is None]
        rows = [self._row(row) for row in table.select(names).take(pa.array(good, pa.int64())).to_pylist()]
        outcomes: list[Outcome | None] = [None] * table.num_rows
        for index, outcome in zip(good, self._lanes.run(rows), strict=True):
            outcomes[index] = outcome
        kept = [not isinstance(outcome, Stopped) for outcome in outcomes]
        return self._with_outcomes(table.filter(pa.array(kept, pa.bool_())), list(compress(outcomes, kept)))

    def close(self) -> None:
        self._lanes.close()

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as a task takes it: with its seed, its pictures as pixels."""
        if row.get("seed") is None:
            row["seed"] = derive_seed(row["id"], self._config.seed)
        for working, name in (("__image", "pixels"), ("__mask", "mask")):
            if (source := row.pop(working, None)) is not None:
                values = np.frombuffer(source["pixels"], np.uint8).copy()  # torch wants to own it
                row[name] = values.reshape(source["height"], source["width"], *((-1,) if name == "pixels" else ()))
        return row

    def _with_outcomes(self, table: pa.Table, outcomes: "Sequence[Outcome | None]") -> pa.Table:
        ids = table["id"].to_pylist()
        made = [None if outcome is None or isinstance(outcome, Exception) else outcome for outcome in outcomes]
        failures = [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]
        hashes = {
            name: table[name].to_pylist() for name in ("source_sha256", "mask_sha256") if name in table.column_names
        }
        varying = [
            {} if one is None else {**one.parameters, "seconds": one.seconds, "created_at": utc_now()} for one in made
        ]
        for row, one in zip(varying, made, strict=True):
            if self._score is not None and one is not None and one.parameters.get("prompt"):
                started = time.perf_counter()
                row["clip_score"] = self._score(one.pixels, one.parameters["prompt"])
                self._report({"score_seconds": time.perf_counter() - started})
        for name, values in hashes.items():
            for row, value in zip(varying, values, strict=True):
                row[name] = value
        kept = (name for name in table.column_names if name not in WORKING or name in (ROW, TAGS))
        columns = {name: table[name] for name in kept}
        columns |= provenance_columns(self._origin, varying)
        columns["width"] = pa.array([None if one is None else one.pixels.shape[1] for one in made], pa.int32())
        columns["height"] = pa.array([None if one is None else one.pixels.shape[0] for one in made], pa.int32())
        columns[PIXELS] = _bytes_of_arrays([None if one is None else one.pixels for one in made])
        known = zip(table["error_type"].to_pylist(), table["error_message"].to_pylist(), failures, strict=True)
        errors = [(kind, message) if error is None else describe_error(error) for kind, message, error in known]
        columns |= {name: pa.array([pair[place] for pair in errors], pa.string()) for place, name in enumerate(ERRORS)}
        if len(ids) != len(outcomes):
            raise AssertionError(f"{len(ids)} rows went in, {len(outcomes)} came out")
        return pa.table(columns)


def _bytes_of_arrays(arrays: Sequence[NDArray[np.uint8] | None]) -> pa.Array:
    """A column of their bytes; one alone is not copied, for it may be large."""
    given = [np.ascontiguousarray(array).reshape(-1) for array in arrays if array is not None]
    offsets = np.cumsum([0, *(0 if array is None else array.size for array in arrays)], dtype=np.int64)
    data = given[0] if len(given) == 1 else np.concatenate([np.zeros(0, np.uint8), *given])
    valid = pa.array([array is not None for array in arrays], pa.bool_()).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(arrays), buffers)
