"""Run a recipe: in this process or on several Ray Train workers, with a user's table prepared by Ray Data."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import ray.data
import ray.train
import ray.train.torch
import torch

from pipeline import storage
from pipeline.errors import ImageError
from pipeline.images.decode import decode_image
from pipeline.images.resize import resize_to_cover
from pipeline.stages.fetch import SourceReader
from pipeline.training.config import TrainConfig, check_options, configured_recipe, record_options
from pipeline.training.data.table import CAPTIONS_FILE, PIXELS_FILE
from pipeline.training.loop import Worker
from pipeline.training.recipes.catalog import RECIPES
from pipeline.training.save import replacing

log = logging.getLogger(__name__)

MAX_RESTARTS: Final = 3
"""The number of times that Ray Train replaces a lost worker; all workers then resume from the last saved state."""


class DataError(ValueError):
    """Raised if a table cannot be used for training."""


def run_training(config: TrainConfig) -> None:
    """Train, in this process or on `config.workers` Ray Train workers; a stopped run resumes.

    DataError if the table cannot be used for training, CheckpointError if the base model cannot, RunError for options
    that do not fit the recipe or the output.
    """
    check_options(config)
    if "data" in RECIPES[config.recipe].options:
        width = configured_recipe(config).width  # reads the base model, if there is one, before anything is written
        if config.data is not None:
            prepare_table(config.data, config.output / "data", width)
    record_options(config)
    if config.workers == 1:
        run_recipe(config, Worker(device=config.device))
        return
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config={"config": config},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
        run_config=ray.train.RunConfig(
            name=config.recipe,
            storage_path=os.fspath((config.output / "ray").resolve()),
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    trainer.fit()


def run_recipe(config: TrainConfig, worker: Worker) -> None:
    """Train as one of the workers."""
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # denormal numbers, in weights that decay towards zero, are slow on CPUs
    try:
        RECIPES[config.recipe].train(configured_recipe(config), config.output, worker)
    finally:
        torch.set_flush_denormal(False)


def _train_on_worker(loop_config: Mapping[str, TrainConfig]) -> None:
    context, config = ray.train.get_context(), loop_config["config"]
    device = "cuda" if config.device == "cuda" else "cpu"
    run_recipe(config, Worker(rank=context.get_world_rank(), count=context.get_world_size(), device=device))


def prepare_table(data: str, folder: Path, width: int) -> None:
    """Read, decode and resize the images of a table into `folder`, the format that `Table` reads.

    Rows whose image cannot be decoded are skipped with a warning. If `folder` already holds this table, it is left
    unchanged. DataError if it holds another table or another image width, if a column is missing, or if no image can be
    decoded.
    """
    source = {"data": storage.redact_url(data), "width": width}
    if (folder / CAPTIONS_FILE).exists():
        _check_prepared(folder, source)
        return
    rows = _read_table(data).map(_Prepare(data, width)).iter_rows()
    folder.mkdir(parents=True, exist_ok=True)
    captions, errors = _write_images(rows, folder / PIXELS_FILE)
    if not captions:
        raise DataError(f"{data}: none of its images can be decoded{': ' + errors[0] if errors else ''}")
    if errors:
        log.warning("left out %d of %d images; the first: %s", len(errors), len(captions) + len(errors), errors[0])
    description = json.dumps({**source, "captions": captions}, ensure_ascii=False)
    with replacing(folder / CAPTIONS_FILE) as path:
        path.write_text(description, encoding="utf-8")


def _check_prepared(folder: Path, source: Mapping[str, Any]) -> None:
    """Raise a DataError if `folder` was prepared from another table or with another width."""
    prepared = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))
    if any(prepared.get(name) != value for name, value in source.items()):
        raise DataError(
            f"{folder} holds the images of {prepared.get('data')}, {prepared.get('width')} pixels wide, not those of "
            f"{source['data']}, {source['width']} wide; delete it, or give another OUTPUT"
        )


def _read_table(data: str) -> ray.data.Dataset:
    """Return the columns image and prompt in the order of the rows. DataError if one is missing."""
    filesystem, path = storage.arrow_filesystem(data)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    try:
        table = ray.data.read_parquet(path, filesystem=filesystem)
    except FileNotFoundError:
        raise DataError(f"{data}: no such file or folder; give a Parquet table with image and prompt") from None
    schema = table.schema()
    missing = {"image", "prompt"} - set(schema.names if schema else ())
    if missing:
        raise DataError(f"{data}: has no column {' and '.join(sorted(missing))}; training needs image and prompt")
    return table.select_columns(["image", "prompt"])


@dataclass(frozen=True, slots=True)
class _Prepare:
    """Maps a row to the RGB bytes of its image, resized and center-cropped to `width` x `width`, or to an error."""

    data: str
    width: int

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            encoded, _ = SourceReader(storage.AllowedRoots(self.data)).read(row["image"])
            pixels = resize_to_cover(decode_image(encoded), self.width, self.width)
        except (ImageError, storage.StorageError, TypeError) as error:
            return {"pixels": b"", "prompt": "", "error": str(error)}
        return {"pixels": pixels.tobytes(), "prompt": row["prompt"] or "", "error": ""}


def _write_images(rows: Iterable[Mapping[str, Any]], path: Path) -> tuple[list[str], list[str]]:
    """Write the pixels of all prepared rows to one file; return their captions, and the errors of the others."""
    captions, errors = list[str](), list[str]()
    with path.open("wb") as file:
        for row in rows:
            if row["error"]:
                errors.append(row["error"])
            else:
                file.write(row["pixels"])
                captions.append(row["prompt"])
    return captions, errors
