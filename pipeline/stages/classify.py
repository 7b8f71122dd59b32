"""Actor stage: zero-shot labels of images by a CLIP (Radford et al. 2021, section 3.1.2)."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import compress

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.inference.journal import Journal, RowJournal
from pipeline.inference.node_cache import UNKNOWN_WEIGHTS, WeightHashes, check_weights, local_checkpoint
from pipeline.output.provenance import ActorProvenance, software_versions, utc_now
from pipeline.schema import CLASSIFIED, DECODED, SOURCE_METADATA
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.loading import report_loading
from pipeline.stages.rows import ERRORS, Report, good_rows, updated_error_columns


class Classify:
    """Actor stage: images to the probabilities of the run's labels, on a CLIP of its own.

    Adds the columns of CLASSIFIED. The network always gets `lanes` images, so that an image's scores depend on it
    alone. When the run stops, rows without scores are dropped."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        device: str,
        report: Report,
        journal: RowJournal | None = None,
        weights: WeightHashes = UNKNOWN_WEIGHTS,
    ) -> None:
        """`weights` are the driver's; CheckpointError if this node's differ."""
        with report_loading(report):
            import torch  # the CPU stages' processes import this package without torch

            from pipeline.inference.loaded_model import device_name
            from pipeline.models.checkpoint.weights import weights_digest
            from pipeline.models.clip import load_clip

            torch.set_num_threads(config.threads)
            dtype = config.dtype_on(device)
            folder = local_checkpoint(config.model, half=dtype == "float16")
            digest = weights_digest(folder, half=dtype == "float16")
            check_weights(config.model, digest, weights.model)
            clip = load_clip(folder, device=device, dtype=getattr(torch, dtype))
            texts = [config.template.replace("{}", label) for label in config.labels]
            self._text_embeds = torch.stack([clip.embed_text(text) for text in texts])
        self._config, self._clip, self._report, self._journal = config, clip, report, journal or Journal()
        provenance = ActorProvenance(
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
        self._provenance = asdict(provenance)

    @property
    def columns(self) -> StageColumns:
        return StageColumns(
            needs=frozenset({"id", DECODED["image"], "source_sha256", *ERRORS}),
            adds=CLASSIFIED,
            removes=frozenset({*DECODED.values(), SOURCE_METADATA}),
        )

    def stopping(self) -> bool:
        return self._journal.stopping()

    def __call__(self, table: pa.Table) -> pa.Table:
        return run_stage(self, self._process, table)

    def _process(self, table: pa.Table) -> pa.Table:
        good = good_rows(table)
        self._report({"rows": table.num_rows - len(good)})
        outcomes: list[list[float] | Exception | None] = [None] * table.num_rows
        images = table[DECODED["image"]]
        for start in range(0, len(good), self._config.lanes):
            if self.stopping():
                break
            batch, started = good[start : start + self._config.lanes], time.perf_counter()
            for index, outcome in zip(batch, self._outcomes([images[index] for index in batch]), strict=True):
                outcomes[index] = outcome
            self._report({"rows": len(batch), "network_seconds": time.perf_counter() - started})
        failed = [error is not None for error in table["error_type"].to_pylist()]
        finished = [outcome is not None or error for outcome, error in zip(outcomes, failed, strict=True)]
        return self._with_labels(table.filter(pa.array(finished, pa.bool_())), list(compress(outcomes, finished)))

    def _outcomes(self, images: Sequence[pa.StructScalar]) -> "list[list[float] | Exception]":
        """Return the labels' probabilities of each image, or its error; a batch that fails is tried one by one."""
        from pipeline.inference.row_errors import attempt_on_device

        outcome = attempt_on_device(lambda: self._probabilities(images).tolist(), self._text_embeds.device)
        if not isinstance(outcome, Exception):
            return outcome
        return [outcome] if len(images) == 1 else [self._outcomes([image])[0] for image in images]

    def _with_labels(self, table: pa.Table, outcomes: Sequence[list[float] | Exception | None]) -> pa.Table:
        scores = [None if isinstance(outcome, Exception) else outcome for outcome in outcomes]
        errors = [outcome if isinstance(outcome, Exception) else None for outcome in outcomes]
        best = [None if row is None else int(np.argmax(row)) for row in scores]
        values: dict[str, Sequence[object]] = {
            "label": [None if index is None else self._config.labels[index] for index in best],
            "label_score": [None if row is None else max(row) for row in scores],
            "label_scores": scores,
        }
        columns = {name: table[name] for name in table.column_names if name not in self.columns.removes}
        columns |= {name: pa.array(value, CLASSIFIED[name]) for name, value in values.items()}
        provenance = {**self._provenance, "created_at": utc_now()}
        for name, value in ((name, provenance[name]) for name in provenance if name in CLASSIFIED):
            columns[name] = pa.repeat(pa.scalar(value, CLASSIFIED[name]), table.num_rows)
        return pa.table(columns | updated_error_columns(table, errors))

    def _probabilities(self, images: Sequence[pa.StructScalar]) -> NDArray[np.float64]:
        """Return the labels' probabilities (B, labels) for decoded images, at most as many as there are lanes."""
        side = self._clip.side
        pixels = np.zeros((self._config.lanes, side, side, 3), np.uint8)
        for index, image in enumerate(images):
            pixels[index] = np.frombuffer(image["pixels"].as_buffer(), np.uint8).reshape(side, side, 3)
        logits = self._clip.scale * self._clip.embed_images(pixels) @ self._text_embeds.T
        return logits.double().softmax(1).numpy()[: len(images)]
