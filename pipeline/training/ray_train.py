"""Training on Ray: a user's table read by Ray Data, and the same loops on several workers of Ray Train."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from pipeline.stages.fetch import source_file
from pipeline.training.data.examples import CAPTIONS_FILE, PICTURES_FILE, Table
from pipeline.training.loop import Worker
from pipeline.training.recipes.catalog import RECIPES

log = logging.getLogger(__name__)

RESTARTS: Final = 3
"""How often a lost worker is replaced; all of them then go on from the last state."""


class DataError(ValueError):
    """A table that can't be trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training: what, on what, into where, and by whom."""

    recipe: str
    output: Path
    """A folder that every worker sees."""
    data: str | None = None
    """A Parquet file or folder with the columns `image` and `prompt`; without it, the recipe's own pictures."""
    workers: int = 1
    device: str = "cpu"
    threads: int = 2
    steps: int | None = None


def run_recipe(config: TrainConfig, worker: Worker) -> None:
    """Train as one of the processes; the same in all of them but for their rank."""
    torch.set_num_threads(config.threads)
    recipe = RECIPES[config.recipe]
    what = recipe.config
    if config.data is not None:
        what = replace(what, source=Table(config.output / "data"))
    if config.steps is not None:
        what = replace(what, loop=replace(what.loop, steps=config.steps))
    torch.set_flush_denormal(True)  # weights that decay towards zero would else slow CPUs down
    try:
        recipe.train(what, config.output, worker)
    finally:
        torch.set_flush_denormal(False)


def run_training(config: TrainConfig) -> None:
    """Train, in this process or on `config.workers` of Ray's; it goes on where a stopped one was."""
    if config.data is not None:
        prepare_table(config.data, config.output / "data", RECIPES[config.recipe].width)
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
            failure_config=ray.train.FailureConfig(max_failures=RESTARTS),
        ),
    )
    trainer.fit()


def prepare_table(data: str, folder: Path, width: int) -> None:
    """Read, decode and resize a table's pictures once, into a folder that `Table` opens; bad rows are left out.

    A folder that holds them already is left as it is. A DataError where it holds another table's pictures or of another
    width, where the table lacks a column, or where no picture can be read.
    """
    source = {"data": storage.redact_url(data), "width": width}
    if (folder / CAPTIONS_FILE).exists():
        there = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))
        if any(there.get(name) != value for name, value in source.items()):
            raise DataError(
                f"{folder} holds the pictures of {there.get('data')}, {there.get('width')} pixels wide, not those of "
                f"{source['data']}, {width} wide; delete it, or give another OUTPUT"
            )
        return
    filesystem, path = storage.arrow_filesystem(data)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    table = ray.data.read_parquet(path, filesystem=filesystem)
    schema = table.schema()
    missing = {"image", "prompt"} - set(schema.names if schema else ())
    if missing:
        raise DataError(f"{data}: has no column {' and '.join(sorted(missing))}; training needs image and prompt")
    prepared = table.select_columns(["image", "prompt"]).map(_Prepare(data, width))
    folder.mkdir(parents=True, exist_ok=True)
    captions, left_out = list[str](), list[str]()
    with (folder / PICTURES_FILE).open("wb") as file:
        for row in prepared.iter_rows():
            if row["error"]:
                left_out.append(row["error"])
            else:
                file.write(row["pixels"])
                captions.append(row["prompt"])
    if not captions:
        raise DataError(f"{data}: no picture of it can be read{': ' + left_out[0] if left_out else ''}")
    if left_out:
        log.warning(
            "%d of %d pictures left out; the first: %s", len(left_out), len(captions) + len(left_out), left_out[0]
        )
    kept = json.dumps({**source, "captions": captions}, ensure_ascii=False)
    (folder / CAPTIONS_FILE).write_text(kept, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Prepare:
    """A row's picture as `width` x `width` RGB bytes, cut to a square in its middle, or what is wrong with it."""

    data: str
    width: int

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            encoded, _ = source_file(row["image"], storage.AllowedRoots(self.data))
            pixels = resize_to_cover(decode_image(encoded), self.width, self.width)
        except (ImageError, storage.StorageError, TypeError) as error:
            return {"pixels": b"", "prompt": "", "error": str(error)}
        return {"pixels": pixels.tobytes(), "prompt": row["prompt"] or "", "error": ""}


def _train_on_worker(given: Mapping[str, TrainConfig]) -> None:
    context, config = ray.train.get_context(), given["config"]
    device = "cuda" if config.device == "cuda" else "cpu"
    run_recipe(config, Worker(rank=context.get_world_rank(), count=context.get_world_size(), device=device))
