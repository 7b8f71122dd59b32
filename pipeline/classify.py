"""Zero-shot labels: the stage that says which of a run's labels a picture fits best (Radford et al. 2021, 3.1.2)."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.checkpoint_files import check_weights, local_checkpoint
from pipeline.config import RunConfig
from pipeline.journal import Journal, RowJournal
from pipeline.provenance import now, software_versions
from pipeline.schema import CLASSIFIED
from pipeline.stages import ERRORS, ROW, LoadMachinery, Report

if TYPE_CHECKING:
    pass


class Classify:
    """Actor stage: pictures to labels, on a CLIP of its own. Gives CLASSIFIED's columns, what is carried, ROW, ERRORS.

    Its network is always shown `lanes` pictures, so that a picture's scores depend on it alone."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        load: LoadMachinery | None = None,
        journal: RowJournal | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        import torch

        from pipeline.models.clip import load_clip  # here: the CPU stages' processes need no torch
        from pipeline.models.weights import weights_digest

        torch.set_num_threads(config.threads)
        dtype = config.dtype or ("float16" if device == "cuda" else "float32")
        folder = local_checkpoint(config.model)
        clip = load_clip(folder, device=device, dtype=getattr(torch, dtype))
        digest = weights_digest(folder, half=dtype == "float16")
        if weights_sha256 is not None:
            check_weights(config.model, digest, weights_sha256)
        self._config, self._clip, self._report, self._journal = config, clip, report, journal or Journal()
        self._texts = torch.stack([clip.of_text(config.template.replace("{}", label)) for label in config.labels])
        self._origin = {
            "task": config.task,
            "model": clip.name,
            "weights_sha256": digest,
            "software": software_versions(),
            "device": device,
            "dtype": dtype,
            "lanes": config.lanes,
            "threads": config.threads,
            "run_id": run_id,
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._journal.stopping():
            table = table.slice(0, 0)
        good = [index for index, error in enumerate(table["error_type"].to_pylist()) if error is None]
        started = time.perf_counter()
        scores: list[list[float] | None] = [None] * table.num_rows
        for start in range(0, len(good), self._config.lanes):
            part = good[start : start + self._config.lanes]
            for index, row in zip(part, self._scores([table["__image"][index] for index in part]), strict=True):
                scores[index] = row.tolist()
        self._report({"rows": table.num_rows, "network_seconds": time.perf_counter() - started})
        best = [None if row is None else int(np.argmax(row)) for row in scores]
        values = {
            "label": [None if place is None else self._config.labels[place] for place in best],
            "label_score": [None if row is None else max(row) for row in scores],
            "label_scores": scores,
        }
        columns: dict[str, Any] = {
            name: table[name] for name in table.column_names if not name.startswith("__") or name in (ROW, *ERRORS)
        }
        columns |= {name: pa.array(value, CLASSIFIED[name]) for name, value in values.items()}
        columns |= {
            name: pa.repeat(pa.scalar(value, CLASSIFIED[name]), table.num_rows) for name, value in self._origin.items()
        }
        columns["created_at"] = pa.repeat(pa.scalar(now(), CLASSIFIED["created_at"]), table.num_rows)
        return pa.table(columns)

    def _scores(self, pictures: list[pa.StructScalar]) -> NDArray[np.float64]:
        """The labels' probabilities (B, labels) for pictures as PrepareRows gives them, at most as many as lanes."""
        side = self._clip.side
        pixels = np.zeros((self._config.lanes, side, side, 3), np.uint8)
        for place, picture in enumerate(pictures):
            pixels[place] = np.frombuffer(picture["pixels"].as_buffer(), np.uint8).reshape(side, side, 3)
        logits = self._clip.scale * self._clip.of_pictures(pixels) @ self._texts.T
        return logits.double().softmax(1).numpy()[: len(pictures)]
