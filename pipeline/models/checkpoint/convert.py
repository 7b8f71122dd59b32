"""Write a single-file checkpoint as the standard folder: a component's config, and its tensors under its names."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.clip_vocabulary import clip_vocabulary, read_vocabulary, write_tokenizer
from pipeline.models.checkpoint.components import build_network
from pipeline.models.checkpoint.layout import DIFFUSERS_STEM, TRANSFORMERS_STEM
from pipeline.models.checkpoint.single_file import TEXT, UNET, SingleFile, read_single_file
from pipeline.models.checkpoint.single_file_configs import (
    PADDING,
    autoencoder_config,
    low_res_scheduler_config,
    scheduler_config,
    text_config,
    unet_config,
)
from pipeline.models.checkpoint.single_file_names import autoencoder_name, open_clip_name, single_file_names
from pipeline.models.unet import UNet

FORMAT: Final = 1
"""The version of what a conversion writes; folders of another version in a cache are not used."""
_SHARD_BYTES: Final = 2 * 2**30


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor of the file, and how the component's tensor is made of it."""

    name: str
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True, slots=True)
class _Component:
    """A component to be written: its config, and its tensors by name."""

    folder: str
    class_name: str
    config: Mapping[str, Any]
    sources: Mapping[str, _Source]
    stem: str = TRANSFORMERS_STEM


def convert_single_file(
    path: Path,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
) -> None:
    """Write the checkpoint in `path` to `folder`, which appears whole or not at all.

    `tokenizer` is a folder whose tokenizer takes the place of CLIP's; the others override what the file says. Every
    weight of the file has a place in a component, or CheckpointError names one that has none."""
    file = read_single_file(path)
    components = [_unet(file), _autoencoder(file), *_text_encoders(file)]
    _check_all_used(file, components)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        target = Path(partial) / "checkpoint"
        index: dict[str, Any] = {"_class_name": _PIPELINES[file.family]}
        for component in components:
            _write_component(path, target / component.folder, component)
            library = "diffusers" if component.stem == DIFFUSERS_STEM else "transformers"
            index[component.folder] = [library, component.class_name]
        index |= _write_tokenizers(file, target, tokenizer)
        index |= _write_schedulers(file, target, prediction_type, zero_terminal_snr)
        if file.family.startswith("sdxl"):
            refiner = file.family == "sdxl-refiner"
            index |= {"force_zeros_for_empty_prompt": not refiner, "requires_aesthetics_score": refiner}
        _write_json(target / "model_index.json", index)
        target.rename(folder)


_PIPELINES: Final = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "x4-upscaler": "StableDiffusionUpscalePipeline",
}


def _unet(file: SingleFile) -> _Component:
    config = unet_config(file)
    network = build_network("UNet2DConditionModel", config, str(file.path), device="meta")
    assert isinstance(network, UNet)
    by_module = {name: stored for stored, name in single_file_names(network.config, _modules(network)).items()}
    sources = {}
    for name in network.state_dict():
        module, _, kind = name.rpartition(".")
        sources[name] = _Source(f"{UNET}{by_module[module]}.{kind}")
    return _Component("unet", "UNet2DConditionModel", config, sources, DIFFUSERS_STEM)


def _modules(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules()]


def _autoencoder(file: SingleFile) -> _Component:
    prefix = file.autoencoder_prefix
    if prefix is None:
        raise CheckpointError(f"{file.path}: has no autoencoder (first_stage_model.*); take a file that has one")
    config = autoencoder_config(file)
    network = build_network("AutoencoderKL", config, str(file.path), device="meta")
    levels = len(config["block_out_channels"])
    sources = {
        name: _Source(prefix + autoencoder_name(name, levels), _reshaped(tuple(tensor.shape)))
        for name, tensor in network.state_dict().items()
    }
    return _Component("vae", "AutoencoderKL", config, sources, DIFFUSERS_STEM)


def _reshaped(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Return how a 1x1 convolution of an old attention becomes the matrix that it is."""
    return lambda tensor: tensor.reshape(shape)


def _text_encoders(file: SingleFile) -> Iterator[_Component]:
    prefixes = TEXT[file.family]
    for number, prefix in enumerate(prefixes, 1):
        is_second = file.family == "sdxl-refiner" or number == 2
        folder = "text_encoder_2" if is_second else "text_encoder"
        open_clip = prefix.endswith(".model.")
        yield (_open_clip if open_clip else _clip)(file, prefix, folder, projects=is_second)


def _clip(file: SingleFile, prefix: str, folder: str, *, projects: bool) -> _Component:
    part = file.part(prefix)
    if not part:
        raise CheckpointError(f"{file.path}: has no text encoder ({prefix}*); take a file that has one")
    inner = "text_model." if any(name.startswith("text_model.") for name in part) else ""
    shapes = {name.removeprefix("text_model."): shape for name, shape in part.items()}
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))
    config = text_config(shapes, open_clip=False, layers=layers, projects=projects)
    class_name = config["architectures"][0]
    names = build_network(class_name, config, str(file.path), device="meta").state_dict()
    return _Component(folder, class_name, config, {name: _Source(f"{prefix}{inner}{name}") for name in names})


def _open_clip(file: SingleFile, prefix: str, folder: str, *, projects: bool) -> _Component:
    """Return an OpenCLIP text encoder. Stable Diffusion 2 takes the states before its last block, which is left out."""
    part = file.part(prefix)
    if not part:
        raise CheckpointError(f"{file.path}: has no text encoder ({prefix}*); take a file that has one")
    blocks = 1 + max(int(name.split(".")[2]) for name in part if name.startswith("transformer.resblocks."))
    shapes = {
        "embeddings.token_embedding.weight": part["token_embedding.weight"],
        "embeddings.position_embedding.weight": part["positional_embedding"],
        "encoder.layers.0.mlp.fc1.weight": part["transformer.resblocks.0.mlp.c_fc.weight"],
        "text_projection.weight": part.get("text_projection", (0, 0))[::-1],
    }
    config = text_config(shapes, open_clip=True, layers=blocks if projects else blocks - 1, projects=projects)
    class_name = config["architectures"][0]
    sources = {}
    for name in build_network(class_name, config, str(file.path), device="meta").state_dict():
        sources[name] = _Source(prefix + open_clip_name(name.removeprefix("text_model.")), _open_clip_change(name))
    return _Component(folder, class_name, config, sources)


def _open_clip_change(name: str) -> Callable[[Tensor], Tensor]:
    """Return how OpenCLIP's tensor becomes that of transformers: a third of the stacked projections, or transposed."""
    for third, letter in enumerate("qkv"):
        if f".self_attn.{letter}_proj." in name:
            return lambda tensor: tensor.chunk(3)[third]
    return (lambda tensor: tensor.T) if name.startswith("text_projection") else (lambda tensor: tensor)


def _check_all_used(file: SingleFile, components: list[_Component]) -> None:
    used = {source.name for component in components for source in component.sources.values()}
    if missing := sorted(used - file.shapes.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{file.path}: lacks {missing[0]}{more}, which its kind of network has")
    unused = sorted(name for name in file.shapes.keys() - used if not _is_left_out(file, name, components))
    if unused:
        count, example = len(unused), unused[0]
        raise CheckpointError(
            f"{file.path}: {count} of its tensors are unknown to this family's networks: {example}, ..."
        )


def _is_left_out(file: SingleFile, name: str, components: list[_Component]) -> bool:
    """Return whether a tensor does not change images: a projection that is not used, or the last block of OpenCLIP."""
    if name.rpartition(".")[0].endswith("text_projection") or name.endswith("text_projection"):
        return True
    if file.family not in ("sd2", "x4-upscaler"):
        return False
    layers = next(each for each in components if each.folder == "text_encoder").config["num_hidden_layers"]
    return name.startswith(f"{TEXT[file.family][0]}transformer.resblocks.{layers}.")


def _write_component(path: Path, folder: Path, component: _Component) -> None:
    """Write a component's config, and its weights in shards, so that memory holds one of them."""
    _write_json(folder / "config.json", component.config)
    shards: list[list[str]] = [[]]
    with safe_open(path, framework="pt") as file:
        size = 0
        tensors: dict[str, Tensor] = {}
        for name, source in component.sources.items():
            tensor = source.change(file.get_tensor(source.name)).contiguous()
            tensors[name] = tensor.half() if tensor.dtype.itemsize == 1 else tensor
            size += tensors[name].nbytes
            shards[-1].append(name)
            if size >= _SHARD_BYTES:
                save_file(tensors, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
                shards.append([])
                tensors, size = {}, 0
        if tensors:
            save_file(tensors, folder / f"part-{len(shards)}.safetensors", metadata={"format": "pt"})
    _name_shards(folder, component.stem, [shard for shard in shards if shard])


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


def _write_tokenizers(file: SingleFile, target: Path, given: Path | None) -> dict[str, list[str]]:
    vocabulary, merges = clip_vocabulary() if given is None else read_vocabulary(given)
    entries: dict[str, list[str]] = {}
    for number, (prefix, padding) in enumerate(zip(TEXT[file.family], PADDING[file.family], strict=True), 1):
        stored = "token_embedding.weight" if prefix.endswith(".model.") else "embeddings.token_embedding.weight"
        rows, _ = next(shape for each, shape in file.part(prefix).items() if each.endswith(stored))
        if rows < len(vocabulary):
            whose = "CLIP's vocabulary" if given is None else f"the tokenizer in {given}"
            raise CheckpointError(
                f"{file.path}: its text encoder has {rows} tokens, {whose} {len(vocabulary)}; give another --tokenizer"
            )
        name = "tokenizer_2" if number == 2 or file.family == "sdxl-refiner" else "tokenizer"
        write_tokenizer(target / name, vocabulary, merges, padding=padding, window=_window(file, prefix))
        entries[name] = ["transformers", "CLIPTokenizer"]
    return entries


def _window(file: SingleFile, prefix: str) -> int:
    ends = ("positional_embedding", "position_embedding.weight")
    return next(shape[0] for name, shape in file.part(prefix).items() if name.endswith(ends))


def _write_schedulers(
    file: SingleFile, target: Path, prediction_type: str | None, zero_terminal_snr: bool | None
) -> dict[str, list[str]]:
    configs = {"scheduler": scheduler_config(file, prediction_type, zero_terminal_snr)}
    if file.family == "x4-upscaler":
        configs["low_res_scheduler"] = low_res_scheduler_config()
    for name, config in configs.items():
        _write_json(target / name / "scheduler_config.json", config)
    return {name: ["diffusers", config["_class_name"]] for name, config in configs.items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
