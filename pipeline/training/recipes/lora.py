"""The LoRA recipe: teaches a text-to-image checkpoint a style, or what a user's images show (Hu et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pipeline.models.checkpoint.weights import channels_last
from pipeline.training.base_model import base_model_width, load_base_model
from pipeline.training.data.examples import Source
from pipeline.training.data.styles import StyledScenes
from pipeline.training.denoising import denoising_errors, sample_timesteps
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.low_rank import LowRankLayers, save_kohya, save_peft


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRecipe:
    """The configuration of the LoRA recipe."""

    base_model: str = "shapes"
    """The base: an embedded checkpoint or a folder."""
    source: Source
    images: int
    """The number of images that are encoded once before training (fewer if the source has fewer)."""
    batch: int
    rank: int = 8
    alpha: float | None = None
    """The low-rank terms are multiplied by alpha / rank; None for a factor of 1."""
    caption_dropout: float = 0.1
    """The probability of an empty caption, for classifier-free guidance."""
    seed: int
    loop: LoopConfig

    @property
    def width(self) -> int:
        """The side of the square training images in pixels."""
        return base_model_width(self.base_model)


LORA: Final = LoraRecipe(
    source=StyledScenes("outlined"),
    images=4_000,
    batch=16,
    seed=13,
    loop=LoopConfig(steps=800, learning_rate=3e-3, warmup_steps=20, cooldown=0.5, average_decay=0.98, save_every=100),
)


def train_lora(recipe: LoraRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train a LoRA of the recipe's model and save it in `output`; state and log are in `output/lora`.

    It is written twice: in PEFT's form (adapter_config.json, adapter_model.safetensors), and in kohya's, in a file with
    the name of the folder."""
    torch.manual_seed(recipe.seed)
    base, folder = load_base_model(recipe.base_model), output / "lora"
    unet = channels_last(base.unet.to(worker.device))
    base.text.network.to(worker.device)
    layers = LowRankLayers(unet, recipe.rank, recipe.rank if recipe.alpha is None else recipe.alpha)
    images = base.encode(recipe.source, folder / "latents.pt", worker, count=recipe.images, seed=recipe.seed)
    tokens, empty_tokens = base.text.tokens(images.captions), base.text.tokens([""])
    alphas = base.alphas(worker)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe.seed, step)
        indices = torch.randint(len(tokens), (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, 1, generator=generator) < recipe.caption_dropout
        latents = images.sample(indices, generator)
        noise = torch.randn(latents.shape, generator=generator).to(memory_format=torch.channels_last)
        timesteps = sample_timesteps(recipe.batch, len(alphas), generator)
        captions = torch.where(dropped, empty_tokens, tokens[indices])
        latents, noise, timesteps, captions = map(worker.local_rows, (latents, noise, timesteps, captions))
        states = base.text_states(captions)

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return unet(noisy, timesteps, states)

        return denoising_errors(network, latents, noise, timesteps, alphas, base.prediction_type).mean(), {}

    average = train(layers, step_loss, recipe.loop, folder, worker, batch=recipe.batch)
    assert isinstance(average, LowRankLayers)
    if worker.rank == 0:
        save_peft(average, output, recipe.base_model)
        save_kohya(average, output / f"{output.resolve().name}.safetensors")
