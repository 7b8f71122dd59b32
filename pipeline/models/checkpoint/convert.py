"""Write a single-file checkpoint as the standard folder: with its own weights, or with references to the file's."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.clip_vocabulary import write_tokenizers
from pipeline.models.checkpoint.layout import DIFFUSERS_STEM, SINGLE_FILE
from pipeline.models.checkpoint.single_file import NO_OPTIONS, SingleFile, SingleFileOptions, read_single_file
from pipeline.models.checkpoint.single_file_configs import (
    VERSION,
    low_res_scheduler_config,
    pipeline_class,
    scheduler_config,
    text_encoder_padding,
)
from pipeline.models.checkpoint.single_file_parts import Part, single_file_parts
from pipeline.models.checkpoint.tensor_names import changed, write_references

FORMAT: Final = 2
"""The version of what is written; folders of another version in a cache are not used."""
_SHARD_BYTES: Final = 2 * 2**30


def convert_single_file(path: Path, folder: Path, options: SingleFileOptions = NO_OPTIONS) -> SingleFile:
    """Write the checkpoint in `path` to `folder`, which appears whole or not at all; return what the file is.

    Every weight of the file belongs to a component; CheckpointError counts those that belong to none."""
    file = read_single_file(path, options)
    _write_folder(file, folder, options, lambda part, target: _write_weights(file, part, target))
    return file


def refer_to_single_file(path: Path, folder: Path, options: SingleFileOptions = NO_OPTIONS) -> None:
    """Write `folder`, whose configs are those of the checkpoint in `path`, and whose weights are references to it."""
    file = read_single_file(path, options)

    def write(part: Part, target: Path) -> None:
        write_references(target, part.stored)

    _write_folder(file, folder, options, write, link=path.resolve())


def _write_folder(
    file: SingleFile,
    folder: Path,
    options: SingleFileOptions,
    write_weights: Callable[[Part, Path], None],
    link: Path | None = None,
) -> None:
    if options.needs_vae and file.autoencoder_prefix is None:
        raise CheckpointError(f"{file.path}: has no autoencoder (first_stage_model.*); a run takes one by --vae")
    parts = single_file_parts(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        target = Path(partial) / "checkpoint"
        index: dict[str, Any] = {"_class_name": pipeline_class(file), **VERSION}
        for part in parts:
            _write_json(target / part.name / "config.json", part.config)
            write_weights(part, target / part.name)
            index[part.name] = ["diffusers" if part.stem == DIFFUSERS_STEM else "transformers", part.class_name]
        encoders = [part for part in parts if part.name.startswith("text_encoder")]
        paddings = text_encoder_padding(file)
        configs = {part.name: part.config for part in encoders}
        write_tokenizers(target, configs, paddings, options.tokenizer, source=str(file.path))
        for part in encoders:
            index[part.name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        index |= _write_schedulers(file, target)
        if file.family.startswith("sdxl"):
            refiner = file.family == "sdxl-refiner"
            index |= {"force_zeros_for_empty_prompt": not refiner, "requires_aesthetics_score": refiner}
        _write_json(target / "model_index.json", index)
        if link is not None:
            (target / SINGLE_FILE).symlink_to(link)
        target.rename(folder)


def _write_weights(file: SingleFile, part: Part, folder: Path) -> None:
    """Write a component's weights in shards, so that memory holds one of them."""
    shards: list[list[str]] = [[]]
    size, tensors = 0, dict[str, Tensor]()

    def write_shard() -> None:
        save_file(tensors, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})

    prefix = "text_model." if part.class_name == "CLIPTextModel" else ""  # as in published files
    with safe_open(file.path, framework="pt") as opened:
        for network_name, (stored, change) in part.stored.items():
            name = prefix + network_name
            tensor = changed(opened.get_tensor(stored), change).reshape(part.shapes[network_name])
            tensors[name] = tensor.half() if tensor.dtype.itemsize == 1 else tensor
            size += tensors[name].nbytes
            shards[-1].append(name)
            if size >= _SHARD_BYTES:
                write_shard()
                shards.append([])
                tensors, size = {}, 0
        if tensors:
            write_shard()
    _name_shards(folder, part.stem, [shard for shard in shards if shard])


def _name_shards(folder: Path, stem: str, shards: list[list[str]]) -> None:
    """Give the shards the standard names, with an index if there are several."""
    if len(shards) == 1:
        (folder / "part-1.safetensors").rename(folder / f"{stem}.safetensors")
        return
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names, 1):
        (folder / f"part-{number}.safetensors").rename(folder / name)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_schedulers(file: SingleFile, target: Path) -> dict[str, list[str]]:
    configs = {"scheduler": scheduler_config(file)}
    if file.family == "x4-upscaler":
        configs["low_res_scheduler"] = low_res_scheduler_config()
    for name, config in configs.items():
        _write_json(target / name / "scheduler_config.json", config)
    return {name: ["diffusers", config["_class_name"]] for name, config in configs.items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
