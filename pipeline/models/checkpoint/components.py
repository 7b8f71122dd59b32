"""Loading the components of a checkpoint folder."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.errors import CheckpointError
from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, VQConfig, VQModel
from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.checkpoint.weights import empty_module, load_weights, read_json
from pipeline.models.text import TextEncoder, load_tokenizer
from pipeline.models.unet import UnconditionalUNetConfig, UNet, UNetConfig

ConfigKind = TypeVar("ConfigKind", bound=AutoencoderConfig)
AutoencoderKind = TypeVar("AutoencoderKind", AutoencoderKL, VQModel)

CLASSES: Final = {
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL",),
    "vqvae": ("AutoencoderKL", "VQModel"),
    "text_encoder": ("CLIPTextModel",),
    "bert": ("LDMBertModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast"),
}
"""The classes that a component of model_index.json may have."""

NETWORKS: Final = (("unet",), ("vae", "vqvae"))
TEXT: Final = (("text_encoder", "bert"), ("tokenizer",))
"""The components of a checkpoint, with the names that the paper's own models use; a UNet2DModel has no text."""

UNET_BLOCKS: Final = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
UNCONDITIONAL_BLOCKS: Final = {
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
AUTOENCODER_BLOCKS: Final = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}

OLD_ATTENTION: Final = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""Names of the autoencoder's attention tensors before and after diffusers 0.16."""


def load_unet(folder: Path, *, half: bool = False) -> UNet:
    """Load the U-Net in `folder`, with text or without, in float32 on the CPU."""
    path = folder / "config.json"
    values = read_json(path)
    has_text = values.get("_class_name") != "UNet2DModel"
    config = (UNetConfig if has_text else UnconditionalUNetConfig).from_dict(values, str(path))
    _check_blocks(config, UNET_BLOCKS if has_text else UNCONDITIONAL_BLOCKS, path)
    if config.mid_block_type != ("UNetMidBlock2DCrossAttn" if has_text else "UNetMidBlock2D"):
        raise CheckpointError(f"{path}: mid_block_type {config.mid_block_type} is unknown")
    unet = empty_module(lambda: UNet(config))
    load_weights(unet, folder, half=half, renames=() if has_text else OLD_ATTENTION)
    return unet.float().eval().requires_grad_(False)


def load_autoencoder(folder: Path, *, half: bool = False) -> AutoencoderKL:
    """Load the KL autoencoder in `folder`, in float32 on the CPU; old names of attention tensors are known."""
    return _load_autoencoder(folder, AutoencoderConfig, AutoencoderKL, half=half)


def load_vq(folder: Path, *, half: bool = False) -> VQModel:
    """Load the VQ autoencoder in `folder`, in float32 on the CPU."""
    return _load_autoencoder(folder, VQConfig, VQModel, half=half)


def load_text_encoder(folder: Path, tokenizer_folder: Path, *, half: bool = False) -> TextEncoder:
    """Load CLIP's text tower or the paper's BERT from `folder`, with its tokenizer, in float32 on the CPU."""
    values = read_json(folder / "config.json")
    if folder.name == "bert":
        config = BertConfig.from_dict(values, str(folder / "config.json"))
        model = empty_module(lambda: BertModel(config))
        load_weights(model, folder, half=half)
        tokenizer_class = BertTokenizer
    else:
        config = CLIPTextConfig(**values)
        model = CLIPTextModel(config)
        load_weights(model, folder, half=half, strip="text_model.", ignored=(".position_ids",))
        tokenizer_class = CLIPTokenizer
    tokenizer = load_tokenizer(tokenizer_folder, config.vocab_size, tokenizer_class)
    return TextEncoder(tokenizer, model.float().eval().requires_grad_(False))


def _load_autoencoder(
    folder: Path, read: type[ConfigKind], build: Callable[[ConfigKind], AutoencoderKind], *, half: bool
) -> AutoencoderKind:
    path = folder / "config.json"
    config = read.from_dict(read_json(path), str(path))
    _check_blocks(config, AUTOENCODER_BLOCKS, path)
    autoencoder = empty_module(lambda: build(config))
    load_weights(autoencoder, folder, half=half, renames=OLD_ATTENTION)
    return autoencoder.float().eval().requires_grad_(False)


def _check_blocks(config: UNetConfig | AutoencoderConfig, blocks: Mapping[str, tuple[str, ...]], path: Path) -> None:
    """Raise CheckpointError for a level of an unknown class, or if there are not as many levels as widths."""
    widths = len(config.block_out_channels)
    for key, known in blocks.items():
        names = getattr(config, key)
        if len(names) != widths:
            raise CheckpointError(f"{path}: {key} has {len(names)} entries, block_out_channels {widths}")
        for name in names:
            if name not in known:
                raise CheckpointError(f"{path}: {key} has the unknown class {name}; known: {', '.join(known)}")


def find_components(folder: Path, index: Mapping[str, Any], wanted: Iterable[tuple[str, ...]]) -> list[str]:
    """Return each component's name in model_index.json; CheckpointError for none or an unknown class."""
    path = folder / "model_index.json"
    found: list[str] = []
    for names in wanted:
        name = next((name for name in names if isinstance(index.get(name), list) and len(index[name]) == 2), None)
        if name is None:
            raise CheckpointError(f"{path}: lists no {names[0]}; this kind of checkpoint needs one")
        class_name, known = index[name][1], CLASSES[name]
        if class_name not in known:
            raise CheckpointError(f"{path}: {name} has the unknown class {class_name}; supported is {known[0]}")
        found.append(name)
    return found
