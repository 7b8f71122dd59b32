"""Loading a checkpoint folder of the field: model_index.json, and a folder a component."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, VQConfig, VQModel
from pipeline.models.bert import BertConfig, BertModel
from pipeline.models.configs import EMBEDDED, CheckpointError, checkpoint_folder
from pipeline.models.text import TextEncoder, load_tokenizer
from pipeline.models.unet import UnconditionalUNetConfig, UNet, UNetConfig
from pipeline.models.weights import channels_last, empty_module, load_weights, read_json, weights_digest

__all__ = ["EMBEDDED", "CheckpointError", "Stack", "checkpoint_folder", "load_stack"]

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
"""What a checkpoint is made of (the paper's own models have the second names); with a UNet2DModel it has no text."""

MAX_NOISE_LEVEL: Final = 350
"""Of a picture that an upscaler is shown, where its model_index.json does not say; as in diffusers."""

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


@dataclass(frozen=True, slots=True)
class Stack:
    """A latent diffusion model on one device: all that a task needs of a checkpoint."""

    name: str
    weights_sha256: str
    unet: UNet
    autoencoder: AutoencoderKL | VQModel
    text: TextEncoder | None
    """None where the U-Net takes no text."""
    schedule_config: dict[str, Any]
    low_res_schedule_config: dict[str, Any] | None
    """By which noise is put on the picture that an upscaler is shown; None where there is none."""
    max_noise_level: int
    """Of that noise."""
    generation_config: dict[str, Any]
    """What the checkpoint says of its use: num_inference_steps, guidance_scale; empty where it says nothing."""
    device: torch.device
    dtype: torch.dtype

    @property
    def downsample_factor(self) -> int:
        """Pixels of a latent's side: what a picture's width and height must be multiples of."""
        return self.autoencoder.config.downsample_factor

    @property
    def latent_channels(self) -> int:
        config = self.autoencoder.config
        return config.embed_dim if isinstance(config, VQConfig) else config.latent_channels

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that the model was trained on."""
        side = self.unet.config.sample_size * self.downsample_factor
        return side, side

    @torch.inference_mode()
    def denoise(
        self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """The U-Net's output (B, C, h, w) for latents, timesteps (B,) and text (B, T, D)."""
        latents = latents.to(memory_format=torch.channels_last)
        return self.unet(latents, timesteps, encoder_hidden_states, class_labels)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Scaled latents of pixels (B, 3, H, W) in [-1, 1]; float32.

        Drawn with `noise` from the encoder's Gaussian; a codebook's encoder has none."""
        dtype = next(self.autoencoder.parameters()).dtype
        pixels = pixels.to(self.device, dtype)
        if isinstance(self.autoencoder, VQModel):
            return self.autoencoder.encode(pixels).float()
        return self.autoencoder.encode(pixels, noise.to(self.device, dtype)).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of scaled latents; float32."""
        dtype = next(self.autoencoder.parameters()).dtype
        latents = latents.to(self.device, dtype, memory_format=torch.channels_last)
        return self.autoencoder.decode(latents).float()


def load_stack(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Stack:
    """Load every component of a checkpoint folder; a CheckpointError names the file and what is wrong with it."""
    index = read_json(folder / "model_index.json")
    unet_name, autoencoder_name = _components(folder, index, NETWORKS)
    half = dtype == torch.float16
    place = torch.device(device)
    unet = channels_last(load_unet(folder / unet_name, half=half).to(place, dtype))
    quantised = index[autoencoder_name][1] == "VQModel"
    autoencoder = (load_vq if quantised else load_autoencoder)(folder / autoencoder_name, half=half)
    upcast = autoencoder.config.force_upcast and half
    channels_last(autoencoder.to(place, torch.float32 if upcast else dtype))
    text = None
    if not isinstance(unet.config, UnconditionalUNetConfig):
        text_name, tokenizer_name = _components(folder, index, TEXT)
        text = load_text_encoder(folder / text_name, folder / tokenizer_name, half=half)
        text.model.to(place, dtype)  # pyright: ignore[reportArgumentType]
        if text.model.config.hidden_size != unet.config.cross_attention_dim:
            raise CheckpointError(
                f"{folder}: {text_name}'s hidden_size is {text.model.config.hidden_size}, "
                f"unet's cross_attention_dim {unet.config.cross_attention_dim}; they must be equal"
            )
    advice = folder / "generation_config.json"
    low_res = folder / "low_res_scheduler" / "scheduler_config.json"
    return Stack(
        name=folder.name,
        weights_sha256=weights_digest(folder, half=half),
        unet=unet,
        autoencoder=autoencoder,
        text=text,
        schedule_config=read_json(folder / "scheduler" / "scheduler_config.json"),
        low_res_schedule_config=read_json(low_res) if "low_res_scheduler" in index else None,
        max_noise_level=int(index.get("max_noise_level", MAX_NOISE_LEVEL)),
        generation_config=read_json(advice) if advice.exists() else {},
        device=place,
        dtype=dtype,
    )


def load_unet(folder: Path, *, half: bool = False) -> UNet:
    """The U-Net in `folder`, with text or without, in float32 or as stored, on the CPU."""
    path = folder / "config.json"
    values = read_json(path)
    told = values.get("_class_name") != "UNet2DModel"
    config = (UNetConfig if told else UnconditionalUNetConfig).from_dict(values, str(path))
    _check_blocks(config, UNET_BLOCKS if told else UNCONDITIONAL_BLOCKS, path)
    if config.mid_block_type != ("UNetMidBlock2DCrossAttn" if told else "UNetMidBlock2D"):
        raise CheckpointError(f"{path}: mid_block_type {config.mid_block_type} is unknown")
    unet = empty_module(lambda: UNet(config))
    load_weights(unet, folder, half=half, renames=() if told else OLD_ATTENTION)
    return unet.float().eval().requires_grad_(False)


def load_autoencoder(folder: Path, *, half: bool = False) -> AutoencoderKL:
    """The autoencoder in `folder`, in float32, on the CPU; attention tensors of old names included."""
    return _load_autoencoder(folder, AutoencoderConfig, AutoencoderKL, half=half)


def load_vq(folder: Path, *, half: bool = False) -> VQModel:
    """The vector-quantised autoencoder in `folder`, in float32, on the CPU."""
    return _load_autoencoder(folder, VQConfig, VQModel, half=half)


def load_text_encoder(folder: Path, tokenizer_folder: Path, *, half: bool = False) -> TextEncoder:
    """CLIP's text tower or the paper's BERT from `folder`, and its tokenizer, in float32, on the CPU."""
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
    """Refuse levels of a class that is not here, and as many of them as the config has no widths for."""
    widths = len(config.block_out_channels)
    for key, known in blocks.items():
        names = getattr(config, key)
        if len(names) != widths:
            raise CheckpointError(f"{path}: {key} has {len(names)} entries, block_out_channels {widths}")
        for name in names:
            if name not in known:
                raise CheckpointError(f"{path}: {key} has the unknown class {name}; known: {', '.join(known)}")


def _components(folder: Path, index: Mapping[str, Any], wanted: Iterable[tuple[str, ...]]) -> list[str]:
    """Which of each component's names model_index.json has; a CheckpointError for none, or for an unknown class."""
    path = folder / "model_index.json"
    found: list[str] = []
    for names in wanted:
        name = next((name for name in names if isinstance(index.get(name), list) and len(index[name]) == 2), None)
        if name is None:
            raise CheckpointError(f"{path}: names no {names[0]}; such a checkpoint needs one")
        class_name, known = index[name][1], CLASSES[name]
        if class_name not in known:
            raise CheckpointError(f"{path}: {name} is of the unknown class {class_name}; known is {known[0]}")
        found.append(name)
    return found
