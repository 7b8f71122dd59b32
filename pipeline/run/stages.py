"""The stages of a run, built from its config and its checkpoint."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.inference.checkpoint_info import CheckpointInfo
from pipeline.inference.journal import Journal, RowJournal
from pipeline.inference.node_cache import WeightHashes
from pipeline.manifest.rules import Rules
from pipeline.models.checkpoint.lora_file import lora_digest
from pipeline.models.checkpoint.weights import file_digest, weights_digest
from pipeline.stages.classify import Classify
from pipeline.stages.denoise import Denoise, LoadModel
from pipeline.stages.encode import EncodeImages
from pipeline.stages.prepare import PrepareRows
from pipeline.stages.rows import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """The stages that rows go through, in this order."""

    prepare: PrepareRows
    model: type[Denoise] | type[Classify]
    model_arguments: tuple[Any, ...]
    """Arguments of the model stage's constructor, which each actor calls."""
    encode: EncodeImages | None
    """None for a task without images."""


def build_stages(
    config: RunConfig,
    checkpoint: CheckpointInfo,
    rules: Rules,
    schema: pa.Schema,
    *,
    run_id: str,
    device: str,
    report: Report,
    weights: WeightHashes,
    duplicates: frozenset[str] = frozenset(),
    journal: RowJournal | None = None,
    load: LoadModel | None = None,
) -> Stages:
    """Return the stages for rows of a schema. Actors load the model by `load`, or else the config's checkpoint."""
    journal = journal or Journal()
    prepare = PrepareRows(
        config=config,
        rules=rules,
        manifest=schema,
        duplicates=duplicates,
        journal=journal,
        report=report,
        square=checkpoint.square,
    )
    if config.task == "classify":
        arguments = (config, run_id, device, report, journal, weights)
        return Stages(prepare=prepare, model=Classify, model_arguments=arguments, encode=None)
    encode = EncodeImages(config=config, manifest=schema, report=report)
    arguments = (config, run_id, device, report, load, journal, weights)
    return Stages(prepare=prepare, model=Denoise, model_arguments=arguments, encode=encode)


def hash_weights(config: RunConfig, checkpoint: CheckpointInfo, device: str) -> WeightHashes:
    """Return the sha256 of a run's weights as they are on the driver, with which each actor compares its own."""
    half = config.dtype_on(device) == "float16"
    return WeightHashes(
        model=None if checkpoint.folder is None else weights_digest(checkpoint.folder, half=half, vae=checkpoint.vae),
        clip=None if checkpoint.clip is None else weights_digest(checkpoint.clip, half=False),
        embeddings={name: file_digest(path) for name, path in checkpoint.embeddings.items()},
        loras={name: lora_digest(path) for name, path in checkpoint.loras.items()},
    )
