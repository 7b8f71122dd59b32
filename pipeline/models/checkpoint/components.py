"""Load the components of a checkpoint folder. NETWORK_CLASSES lists the classes of networks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.errors import CheckpointError, one_line
from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, VQConfig, VQModel
from pipeline.models.autoencoder_asymmetric import AsymmetricAutoencoderKL, AsymmetricConfig
from pipeline.models.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.checkpoint.layout import DIFFUSERS_STEM, TRANSFORMERS_STEM
from pipeline.models.checkpoint.tensor_names import PLAIN_NAMES, TensorNames
from pipeline.models.checkpoint.weights import load_weights, match_tensors, read_json
from pipeline.models.configs import Config, check_levels
from pipeline.models.text import TextEncoder, load_tokenizer
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UnconditionalUNetConfig, UNetConfig

CLASSES: Final = {
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL"),
    "vqvae": ("AutoencoderKL", "VQModel"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "bert": ("LDMBertModel",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast"),
}
"""The classes that a component of model_index.json may have."""

UNETS: Final = (("unet",),)
TEXT: Final = (("text_encoder", "bert"), ("tokenizer",))
SECOND_TEXT: Final = (("text_encoder_2",), ("tokenizer_2",))
"""The components of a checkpoint: the possible names of each, the second being that of the paper's models.

A checkpoint with a UNet2DModel has no text encoder; SDXL has two, and its refiner only the second."""

OLD_ATTENTION: Final = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""Names of the autoencoder's attention tensors before and after diffusers 0.16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkClass:
    """The construction of a class of networks from config.json, and the format of its weights."""

    build: Callable[[Mapping[str, Any], str], nn.Module]
    """Builds the network from a config and the config's file name, which error messages contain."""
    stem: str = DIFFUSERS_STEM
    names: TensorNames = PLAIN_NAMES
    has_buffers: bool = False
    """Whether the network has tensors that it computes and that are not in the weight files."""


def _network(config: type[Config], network: Callable[[Any], nn.Module]) -> Callable[..., nn.Module]:
    def build(values: Mapping[str, Any], source: str) -> nn.Module:
        typed = config.from_dict(values, source)
        check_levels(typed, source)
        return network(typed)

    return build


NETWORK_CLASSES: Final[Mapping[str, NetworkClass]] = {
    "UNet2DConditionModel": NetworkClass(build=_network(UNetConfig, UNet)),
    "UNet2DModel": NetworkClass(
        build=_network(UnconditionalUNetConfig, UNet), names=TensorNames(renames=OLD_ATTENTION)
    ),
    "AutoencoderKL": NetworkClass(
        build=_network(AutoencoderConfig, AutoencoderKL), names=TensorNames(renames=OLD_ATTENTION)
    ),
    "AsymmetricAutoencoderKL": NetworkClass(
        build=_network(AsymmetricConfig, AsymmetricAutoencoderKL), names=TensorNames(renames=OLD_ATTENTION)
    ),
    "AutoencoderTiny": NetworkClass(build=_network(AutoencoderTinyConfig, AutoencoderTiny)),
    "VQModel": NetworkClass(build=_network(VQConfig, VQModel), names=TensorNames(renames=OLD_ATTENTION)),
    "CLIPTextModel": NetworkClass(
        build=lambda values, _: CLIPTextModel(CLIPTextConfig(**values)),
        stem=TRANSFORMERS_STEM,
        names=TensorNames(strip="text_model.", ignored=(".position_ids",)),
        has_buffers=True,
    ),
    "CLIPTextModelWithProjection": NetworkClass(
        build=lambda values, _: CLIPTextModelWithProjection(CLIPTextConfig(**values)),
        stem=TRANSFORMERS_STEM,
        names=TensorNames(ignored=(".position_ids",)),
        has_buffers=True,
    ),
    "LDMBertModel": NetworkClass(build=_network(BertConfig, BertModel), stem=TRANSFORMERS_STEM),
}


def load_network(folder: Path, class_name: str, *, half: bool = False, device: str = "cpu") -> nn.Module:
    """Load the network in `folder`, in float32 on the CPU; CheckpointError if it cannot be loaded.

    On the device "meta", only the config and the headers of the weight files are read; the weights have no data."""
    kind, path = NETWORK_CLASSES[class_name], folder / "config.json"
    module = build_network(class_name, read_json(path), str(path), device=device)
    return fill_network(module, folder, kind.stem, kind.names, half=half, device=device)


def build_network(class_name: str, values: Mapping[str, Any], source: str, *, device: str = "meta") -> nn.Module:
    """Return the network of a config without its weights; `source` is the config's file, for errors."""
    kind = NETWORK_CLASSES[class_name]
    try:
        with torch.device("cpu" if kind.has_buffers and device != "meta" else "meta"):
            return kind.build(values, source)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - torch and transformers raise many kinds for impossible values
        raise CheckpointError(f"{source}: a {class_name} cannot be built of it: {one_line(error)}") from None


def fill_network(
    module: nn.Module, source: Path, stem: str, names: TensorNames, *, half: bool, device: str
) -> nn.Module:
    """Return the network with the weights of a folder or file, in float32; on "meta", they are only checked."""
    if device == "meta":
        match_tensors(module, source, stem, half=half, names=names)
    else:
        load_weights(module, source, stem, half=half, names=names)
    return module.float().eval().requires_grad_(False)


def load_unet(folder: Path, *, half: bool = False) -> UNet:
    """Load the conditional or unconditional U-Net in `folder`, in float32 on the CPU."""
    unet = load_network(folder, class_in_config(folder) or "UNet2DConditionModel", half=half)
    assert isinstance(unet, UNet)
    return unet


def load_autoencoder(folder: Path, *, half: bool = False) -> AutoencoderKL:
    """Load the KL autoencoder in `folder`, in float32 on the CPU; old names of attention tensors are supported."""
    autoencoder = load_network(folder, "AutoencoderKL", half=half)
    assert isinstance(autoencoder, AutoencoderKL)
    return autoencoder


def load_vq(folder: Path, *, half: bool = False) -> VQModel:
    """Load the VQ autoencoder in `folder`, in float32 on the CPU."""
    autoencoder = load_network(folder, "VQModel", half=half)
    assert isinstance(autoencoder, VQModel)
    return autoencoder


def load_text_encoder(
    folder: Path,
    tokenizer_folder: Path,
    class_name: str = "CLIPTextModel",
    *,
    half: bool = False,
    device: str = "cpu",
) -> TextEncoder:
    """Load CLIP's text encoder or the paper's BERT from `folder`, with its tokenizer, in float32."""
    model = load_network(folder, class_name, half=half, device=device)
    assert isinstance(model, BertModel | CLIPTextModel | CLIPTextModelWithProjection)
    tokenizer_class = BertTokenizer if isinstance(model, BertModel) else CLIPTokenizer
    return TextEncoder(load_tokenizer(tokenizer_folder, model.config.vocab_size, tokenizer_class), model)


def find_components(folder: Path, index: Mapping[str, Any], wanted: Iterable[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the name and class of each component; CheckpointError if one is missing or its class is unknown.

    The class is that in model_index.json, as in diffusers, or else that in the component's own config."""
    path = folder / "model_index.json"
    found: list[tuple[str, str]] = []
    for names in wanted:
        listed = [name for name in names if isinstance(index.get(name), list) and len(index[name]) == 2]
        name = next((name for name in listed if index[name] != [None, None]), None)
        if name is None:
            raise CheckpointError(f"{path}: lists no {names[0]}; this kind of checkpoint needs one")
        class_name, known = index[name][1] or class_in_config(folder / name), CLASSES[name]
        if not isinstance(class_name, str) or class_name not in known:
            supported = " or ".join(known)
            raise CheckpointError(f"{path}: {name} has the unknown class {class_name}; supported is {supported}")
        found.append((name, class_name))
    return found


_CLASS_KEYS: Final = {"config.json": ("_class_name", "architectures"), "tokenizer_config.json": ("tokenizer_class",)}


def class_in_config(folder: Path) -> str | None:
    """Return the class that a component's config names, or None."""
    for file, keys in _CLASS_KEYS.items():
        values = read_json(folder / file) if (folder / file).exists() else {}
        given = [values[key] for key in keys if values.get(key)]
        if given:
            return given[0][0] if isinstance(given[0], list) else given[0]
    return None
