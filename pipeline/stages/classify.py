"""Zero-shot labels: the stage that says which of a run's labels a picture fits best (Radford et al. 2021, 3.1.2)."""

import time
from dataclasses import asdict
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.inference.journal import Journal, RowJournal
from pipeline.inference.node_cache import UNKNOWN, Weights, check_weights, local_checkpoint
from pipeline.output.provenance import ActorProvenance, software_versions, utc_now
from pipeline.schema import CLASSIFIED, WORKING
from pipeline.stages.loading import report_loading
from pipeline.stages.rows import ROW, Report


class Classify:
    """Actor stage: pictures to labels, on a CLIP of its own. Gives CLASSIFIED's columns, what is carried, ROW, ERRORS.

    Its network is always shown `lanes` pictures, so that a picture's scores depend on it alone. When the journal says
    that the run stops, what has no scores yet is left out."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        journal: RowJournal | None = None,
        weights: Weights = UNKNOWN,
    ) -> None:
        """`weights`: the driver's; CheckpointError if this node's are others."""
        with report_loading(report):
            import torch

            from pipeline.inference.loaded_model import device_name  # here: the CPU stages' processes need no torch
            from pipeline.models.checkpoint.weights import weights_digest
            from pipeline.models.clip import load_clip

            torch.set_num_threads(config.threads)
            dtype, folder = config.dtype_on(device), local_checkpoint(config.model)
            digest = weights_digest(folder, half=dtype == "float16")
            check_weights(config.model, digest, weights.model)
            clip = load_clip(folder, device=device, dtype=getattr(torch, dtype))
            self._texts = torch.stack([clip.of_text(config.template.replace("{}", label)) for label in config.labels])
        self._config, self._clip, self._report, self._journal = config, clip, report, journal or Journal()
        origin = ActorProvenance(
            task=config.task,
            model=clip.name,
            weights_sha256=digest,
            software=software_versions(),
            device=device_name(device),
            dtype=dtype,
            lanes=config.lanes,
            threads=config.threads,
            run_id=run_id,
        )
        self._origin = asdict(origin)

    def __call__(self, table: pa.Table) -> pa.Table:
        errors = table["error_type"].to_pylist()
        good = [index for index, error in enumerate(errors) if error is None]
        self._report({"rows": len(errors) - len(good)})
        scores: list[list[float] | None] = [None] * table.num_rows
        for start in range(0, len(good), self._config.lanes):
            if self._journal.stopping():
                break
            part, started = good[start : start + self._config.lanes], time.perf_counter()
            for index, row in zip(part, self._scores([table["__image"][index] for index in part]), strict=True):
                scores[index] = row.tolist()
            self._report({"rows": len(part), "network_seconds": time.perf_counter() - started})
        done = [row is not None or error is not None for row, error in zip(scores, errors, strict=True)]
        return self._with_labels(table.filter(pa.array(done, pa.bool_())), list(compress(scores, done)))

    def _with_labels(self, table: pa.Table, scores: list[list[float] | None]) -> pa.Table:
        best = [None if row is None else int(np.argmax(row)) for row in scores]
        values = {
            "label": [None if place is None else self._config.labels[place] for place in best],
            "label_score": [None if row is None else max(row) for row in scores],
            "label_scores": scores,
        }
        kept = (name for name in table.column_names if name not in WORKING or name == ROW)
        columns: dict[str, Any] = {name: table[name] for name in kept}
        columns |= {name: pa.array(value, CLASSIFIED[name]) for name, value in values.items()}
        columns |= {
            name: pa.repeat(pa.scalar(value, CLASSIFIED[name]), table.num_rows) for name, value in self._origin.items()
        }
        columns["created_at"] = pa.repeat(pa.scalar(utc_now(), CLASSIFIED["created_at"]), table.num_rows)
        return pa.table(columns)

    def _scores(self, pictures: list[pa.StructScalar]) -> NDArray[np.float64]:
        """The labels' probabilities (B, labels) for pictures as PrepareRows gives them, at most as many as lanes."""
        side = self._clip.side
        pixels = np.zeros((self._config.lanes, side, side, 3), np.uint8)
        for place, picture in enumerate(pictures):
            pixels[place] = np.frombuffer(picture["pixels"].as_buffer(), np.uint8).reshape(side, side, 3)
        logits = self._clip.scale * self._clip.of_pictures(pixels) @ self._texts.T
        return logits.double().softmax(1).numpy()[: len(pictures)]
