"""The components of a single-file checkpoint: the config of each, and the stored tensors of which it consists."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.components import build_network
from pipeline.models.checkpoint.layout import DIFFUSERS_STEM, TRANSFORMERS_STEM
from pipeline.models.checkpoint.single_file import TEXT, UNET, SingleFile
from pipeline.models.checkpoint.single_file_configs import autoencoder_config, text_config, unet_config
from pipeline.models.checkpoint.single_file_names import autoencoder_name, open_clip_name, single_file_names
from pipeline.models.checkpoint.tensor_names import Change, StoredTensors, changed
from pipeline.models.unet import UNet


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A component of a single-file checkpoint."""

    name: str
    """Its name in model_index.json."""
    class_name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """The network's tensors."""
    stored: StoredTensors
    stem: str = TRANSFORMERS_STEM


def single_file_parts(file: SingleFile) -> list[Part]:
    """Return the components of a single-file checkpoint, of an autoencoder that it lacks, only the config.

    Every weight of the file belongs to one of them; CheckpointError counts those that are unknown, missing or
    have another shape."""
    try:
        parts = [_unet(file), _autoencoder(file), *_text_encoders(file)]
    except (KeyError, IndexError, StopIteration, ValueError, ZeroDivisionError) as error:
        lacks = f" (no tensor {error.args[0]})" if isinstance(error, KeyError) else ""
        raise CheckpointError(f"{file.path}: has some tensors of {file.family} but not its structure{lacks}") from None
    _check_stored(file, parts)
    _check_all_used(file, parts)
    return parts


def _part(name: str, class_name: str, config: Mapping[str, Any], network: nn.Module, stored: StoredTensors) -> Part:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stem = DIFFUSERS_STEM if "_class_name" in config else TRANSFORMERS_STEM
    return Part(name=name, class_name=class_name, config=config, shapes=shapes, stored=stored, stem=stem)


def _unet(file: SingleFile) -> Part:
    config = unet_config(file)
    network = build_network("UNet2DConditionModel", config, str(file.path))
    assert isinstance(network, UNet)
    modules = [name for name, _ in network.named_modules()]
    by_module = {name: stored for stored, name in single_file_names(network.config, modules).items()}
    stored: dict[str, tuple[str, Change]] = {}
    for name in network.state_dict():
        module, _, kind = name.rpartition(".")
        stored[name] = (f"{UNET}{by_module[module]}.{kind}", "none")
    return _part("unet", "UNet2DConditionModel", config, network, stored)


def _autoencoder(file: SingleFile) -> Part:
    config = autoencoder_config(file)
    network = build_network("AutoencoderKL", config, str(file.path))
    levels, prefix = len(config["block_out_channels"]), file.autoencoder_prefix
    stored: StoredTensors = {
        name: (f"{prefix}{autoencoder_name(name, levels)}", "none") for name in network.state_dict() if prefix
    }
    return _part("vae", "AutoencoderKL", config, network, stored)


def _text_encoders(file: SingleFile) -> Iterator[Part]:
    for number, prefix in enumerate(TEXT[file.family], 1):
        is_second = file.family == "sdxl-refiner" or number == 2
        name = "text_encoder_2" if is_second else "text_encoder"
        yield (_open_clip if prefix.endswith(".model.") else _clip)(file, prefix, name, projects=is_second)


def _clip(file: SingleFile, prefix: str, name: str, *, projects: bool) -> Part:
    """Return a text encoder under transformers' names; old files have them without `text_model.`."""
    part = file.part(prefix)
    inner = "text_model." if any(name.startswith("text_model.") for name in part) else ""
    shapes = {name.removeprefix(inner): shape for name, shape in part.items()}
    config = text_config(shapes, open_clip=False, layers=_blocks(shapes, "encoder.layers."), projects=projects)
    class_name = config["architectures"][0]
    network = build_network(class_name, config, str(file.path))
    stored: StoredTensors = {
        name: (f"{prefix}{inner}{name.removeprefix('text_model.')}", "none") for name in network.state_dict()
    }
    return _part(name, class_name, config, network, stored)


def _open_clip(file: SingleFile, prefix: str, name: str, *, projects: bool) -> Part:
    """Return an OpenCLIP text encoder. Stable Diffusion 2 takes the states before its last block, which is left out."""
    part = file.part(prefix)
    blocks = _blocks(part, "transformer.resblocks.")
    shapes = {
        "embeddings.token_embedding.weight": part["token_embedding.weight"],
        "embeddings.position_embedding.weight": part["positional_embedding"],
        "encoder.layers.0.mlp.fc1.weight": part["transformer.resblocks.0.mlp.c_fc.weight"],
        "text_projection.weight": part.get("text_projection", (0, 0))[::-1],
    }
    config = text_config(shapes, open_clip=True, layers=blocks if projects else blocks - 1, projects=projects)
    class_name = config["architectures"][0]
    network = build_network(class_name, config, str(file.path))
    stored: StoredTensors = {
        name: (prefix + open_clip_name(name.removeprefix("text_model.")), _open_clip_change(name))
        for name in network.state_dict()
    }
    return _part(name, class_name, config, network, stored)


def _open_clip_change(name: str) -> Change:
    thirds: tuple[tuple[str, Change], ...] = (
        (".self_attn.q_proj.", "first third"),
        (".self_attn.k_proj.", "second third"),
        (".self_attn.v_proj.", "last third"),
    )
    for part, change in thirds:
        if part in name:
            return change
    return "transposed" if name.startswith("text_projection") else "none"


def _blocks(names: Mapping[str, object], start: str) -> int:
    """Return the number of a text encoder's blocks, whose names begin with `start`."""
    return 1 + max(int(name[len(start) :].split(".")[0]) for name in names if name.startswith(start))


def _check_stored(file: SingleFile, parts: Sequence[Part]) -> None:
    """Raise CheckpointError if a tensor is missing or has another shape than its network's."""
    for part in parts:
        missing = sorted({stored for stored, _ in part.stored.values()} - file.shapes.keys())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(f"{file.path}: lacks {missing[0]}{more}, which its {part.name} needs")
        for name, (stored, change) in part.stored.items():
            given = tuple(changed(torch.empty(file.shapes[stored], device="meta"), change).shape)
            if _without_ones(given) != _without_ones(part.shapes[name]):
                expected = part.shapes[name]
                raise CheckpointError(f"{file.path}: {stored} is {given}; its {part.name} needs {expected}")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without sides of 1: old attentions are 1x1 convolutions."""
    return tuple(side for side in shape if side != 1)


def _check_all_used(file: SingleFile, parts: Sequence[Part]) -> None:
    used = {stored for part in parts for stored, _ in part.stored.values()}
    unused = sorted(name for name in file.shapes.keys() - used if not _is_left_out(file, name, parts))
    if unused:
        raise CheckpointError(
            f"{file.path}: {len(unused)} of its {len(file.shapes)} tensors are unknown to the networks of its family, "
            f"such as {unused[0]}"
        )


def _is_left_out(file: SingleFile, name: str, parts: Sequence[Part]) -> bool:
    """Return whether a tensor does not change images: a projection that is not used, or the last block of OpenCLIP."""
    if not name.startswith(TEXT[file.family]):
        return False
    if name.removesuffix(".weight").endswith("text_projection"):
        return True
    if file.family not in ("sd2", "x4-upscaler"):
        return False
    layers = next(part for part in parts if part.name == "text_encoder").config["num_hidden_layers"]
    return name.startswith(f"{TEXT[file.family][0]}transformer.resblocks.{layers}.")
