"""The text-to-image checkpoint that a recipe starts from: the teacher of a distillation, the base of a LoRA."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.errors import CheckpointError
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import checkpoint_folder
from pipeline.models.stack import Stack
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UNetConfig
from pipeline.training.conditioning import TextModel
from pipeline.training.data.examples import Source
from pipeline.training.encoded_images import EncodedImages, encoded_images
from pipeline.training.loop import Worker


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A checkpoint of the form of Stable Diffusion 1.x and 2.x, with frozen weights."""

    folder: Path
    unet: UNet
    autoencoder: AutoencoderKL
    text: TextModel
    schedule_config: dict[str, object]
    """The contents of scheduler/scheduler_config.json."""
    width: int
    """The side of its images in pixels."""

    @property
    def prediction_type(self) -> str:
        """The prediction type of the U-Net."""
        return str(self.schedule_config.get("prediction_type", "epsilon"))

    def alphas(self, worker: Worker) -> Tensor:
        """Return the cumulative alphas of all timesteps, (T,), on the worker's device."""
        return NoiseScheduleConfig.from_dict(self.schedule_config).alphas_cumprod().float().to(worker.device)

    def text_states(self, tokens: Tensor) -> Tensor:
        """Return the U-Net's text input (B, window, D) for token ids (B, window)."""
        with torch.no_grad():
            return self.text.network(tokens).last_hidden_state

    def encode(self, source: Source, path: Path, worker: Worker, *, count: int, seed: int) -> EncodedImages:
        """Return `count` images of a source, encoded once and stored in `path` (see `encoded_images`)."""
        return encoded_images(source, self.autoencoder, path, worker, count=count, seed=seed, width=self.width)


def load_base_model(model: str) -> BaseModel:
    """Load an embedded checkpoint or a folder; CheckpointError if its U-Net needs more than a prompt."""
    folder = checkpoint_folder(model)
    stack = load_stack(folder)
    _check_form(model, stack)
    assert stack.text is not None and isinstance(stack.autoencoder, AutoencoderKL)
    (text,) = stack.text.encoders
    return BaseModel(
        folder=folder,
        unet=stack.unet,
        autoencoder=stack.autoencoder,
        text=TextModel(text.tokenizer, text.model),  # pyright: ignore[reportArgumentType]
        schedule_config=stack.schedule_config,
        width=stack.native_size[0],
    )


def base_model_width(model: str) -> int:
    """Return the side in pixels of a checkpoint's images; reads only the headers of its weights.

    CheckpointError as of `load_base_model`."""
    stack = load_stack(checkpoint_folder(model), device="meta")
    _check_form(model, stack)
    return stack.native_size[0]


def _check_form(model: str, stack: Stack) -> None:
    config, size = stack.unet.config, stack.native_size
    problem = None
    if stack.text is None or stack.text.is_xl or not isinstance(stack.autoencoder, AutoencoderKL):
        problem = "it is of another family"
    elif config.in_channels != stack.latent_channels or config.num_class_embeds:
        problem = f"its U-Net takes {config.in_channels} channels, its latents have {stack.latent_channels}"
    elif isinstance(config, UNetConfig) and config.time_cond_proj_dim:
        problem = "its U-Net takes a guidance embedding (time_cond_proj_dim), so it is distilled already"
    elif size[0] != size[1]:
        problem = f"its images are {size[0]}x{size[1]} pixels, not square"
    if problem:
        raise CheckpointError(
            f"{model}: {problem}; the recipe needs a text-to-image checkpoint like Stable Diffusion 1.x or 2.x"
        )
