"""The text-to-image recipes: a U-Net and its text encoder, trained on the latents of captioned images."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.checkpoint.components import load_autoencoder, load_unet
from pipeline.models.checkpoint.weights import channels_last
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UNetConfig
from pipeline.training.conditioning import (
    Conditioning,
    TextModel,
    load_frozen_clip,
    load_text_model,
    new_bert_text_model,
    new_clip_text_model,
)
from pipeline.training.data.examples import SCENES, Source
from pipeline.training.denoising import Denoiser, denoising_errors, min_snr_weights, sample_timesteps
from pipeline.training.encoded_images import EncodedImages, encoded_images
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.save import save_component, write_json, write_model_index


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionRecipe:
    """The configuration of a text-to-image recipe."""

    unet: UNetConfig
    conditioning: Conditioning = "clip"
    fine_tune: bool = False
    """Train the existing U-Net and CLIP text encoder of the output further, instead of new ones."""
    text_layers: int
    text_heads: int
    window: int
    """The length of the text encoder's input in tokens."""
    scheduler: dict[str, object]
    """The contents of scheduler/scheduler_config.json. Its noise schedule is used for training."""
    generation_config: dict[str, object]
    """The contents of generation_config.json: the number of steps and the guidance scale that suit the model."""
    source: Source = SCENES
    width: int
    """The side of the square training images in pixels."""
    images: int
    """The number of images that are encoded once before training (fewer if the source has fewer)."""
    batch: int
    caption_dropout: float = 0.1
    """The probability of an empty caption, for classifier-free guidance (Ho and Salimans 2022)."""
    min_snr_gamma: float | None = None
    """The clamp of the Min-SNR loss weights (Hang et al. 2023); None weights all timesteps equally."""
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))

    @property
    def prediction_type(self) -> str:
        """The prediction type of the network, as in the scheduler's config."""
        return str(self.scheduler["prediction_type"])


SHAPES_DIFFUSION: Final = DiffusionRecipe(
    unet=UNetConfig(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    text_layers=2,
    text_heads=4,
    window=32,
    scheduler={
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    generation_config={"num_inference_steps": 20, "guidance_scale": 4.0},
    width=64,
    images=60_000,
    batch=32,
    seed=2,
    loop=LoopConfig(steps=3_800, learning_rate=2e-3, warmup_steps=100, cooldown=0.27, average_decay=0.998),
)
SHAPES_DIFFUSION_FROZEN_CLIP: Final = replace(SHAPES_DIFFUSION, conditioning="frozen-clip")
SHAPES_DIFFUSION_CLIP: Final = replace(
    SHAPES_DIFFUSION,
    fine_tune=True,
    seed=7,
    loop=LoopConfig(steps=2_000, learning_rate=1e-3, warmup_steps=100, cooldown=0.6, average_decay=0.998),
)
"""Trains the result of SHAPES_DIFFUSION_FROZEN_CLIP further, including its text encoder."""
SHAPES_DIFFUSION_BERT: Final = replace(SHAPES_DIFFUSION, conditioning="bert")


@dataclass(frozen=True, slots=True)
class DenoisingBatch:
    """Latents and noise (B, C, h, w), token ids (B, window) and timesteps (B,)."""

    latents: Tensor
    noise: Tensor
    tokens: Tensor
    timesteps: Tensor

    def local_rows(self, worker: Worker) -> "DenoisingBatch":
        """Return the worker's rows, on its device."""
        tensors = (self.latents, self.noise, self.tokens, self.timesteps)
        return DenoisingBatch(*(worker.local_rows(tensor) for tensor in tensors))


def denoising_loss(
    denoiser: Denoiser, batch: DenoisingBatch, alphas: Tensor, recipe: DiffusionRecipe
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted mean squared error of the model output, and the mean error per third of the timesteps.

    `alphas` are the cumulative alphas of all timesteps, (T,).
    """
    errors = denoising_errors(
        lambda *noisy: denoiser(*noisy, batch.tokens),
        batch.latents,
        batch.noise,
        batch.timesteps,
        alphas,
        recipe.prediction_type,
    )
    errors = errors.flatten(1).mean(1)
    thirds = batch.timesteps * 3 // len(alphas)
    metrics = {
        f"loss_{name}_noise": errors[thirds == third].mean().item()
        for third, name in enumerate(("low", "medium", "high"))
        if (thirds == third).any()
    }
    if recipe.min_snr_gamma is not None:
        errors = errors * min_snr_weights(alphas[batch.timesteps], recipe.min_snr_gamma, recipe.prediction_type)
    return errors.mean(), metrics


def train_diffusion(recipe: DiffusionRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train a denoiser on the latents of `output/vae`, and complete `output` to a diffusers checkpoint folder.

    State and log are in `output/diffusion`, or in `output/tuning` for a recipe that fine-tunes.
    """
    torch.manual_seed(recipe.seed)
    folder = output / ("tuning" if recipe.fine_tune else "diffusion")
    if recipe.fine_tune:
        unet, text = load_unet(output / "unet").requires_grad_(True), load_text_model(output)
    else:
        unet, text = UNet(recipe.unet), _build_text_model(recipe, output)
    denoiser = Denoiser(channels_last(unet), text.network)
    images = encoded_images(
        recipe.source,
        load_autoencoder(output / "vae"),
        folder / "latents.pt",
        worker,
        count=recipe.images,
        seed=recipe.seed,
        width=recipe.width,
    )
    tokens, empty_tokens = text.tokens(images.captions), text.tokens([""])
    alphas = NoiseScheduleConfig.from_dict(recipe.scheduler).alphas_cumprod().float().to(worker.device)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe.seed, step)
        batch = _sample_batch(images, tokens, empty_tokens, len(alphas), recipe, generator)
        return denoising_loss(denoiser, batch.local_rows(worker), alphas, recipe)

    average = train(denoiser, step_loss, recipe.loop, folder, worker, batch=recipe.batch).cpu()
    assert isinstance(average, Denoiser)
    if worker.rank == 0:
        _save(average, text, recipe, output)


def _build_text_model(recipe: DiffusionRecipe, output: Path) -> TextModel:
    """Return the text model that the recipe's conditioning names."""
    if recipe.conditioning == "frozen-clip":
        return load_frozen_clip(output / "clip")
    new_text_model = new_bert_text_model if recipe.conditioning == "bert" else new_clip_text_model
    return new_text_model(
        recipe.source.words(),
        width=recipe.unet.per_level("cross_attention_dim")[0],
        window=recipe.window,
        layers=recipe.text_layers,
        heads=recipe.text_heads,
    )


def _sample_batch(
    images: EncodedImages,
    tokens: Tensor,
    empty_tokens: Tensor,
    num_timesteps: int,
    recipe: DiffusionRecipe,
    generator: torch.Generator,
) -> DenoisingBatch:
    """Sample images with replacement, their latents, timesteps and noise; drop captions at the recipe's rate."""
    indices = torch.randint(len(tokens), (recipe.batch,), generator=generator)
    latents = images.sample(indices, generator)
    dropped = torch.rand(recipe.batch, 1, generator=generator) < recipe.caption_dropout
    batch_tokens = torch.where(dropped, empty_tokens, tokens[indices])
    timesteps = sample_timesteps(recipe.batch, num_timesteps, generator)
    noise = torch.randn(latents.shape, generator=generator).to(memory_format=torch.channels_last)
    return DenoisingBatch(latents, noise, batch_tokens, timesteps)


def _save(denoiser: Denoiser, text: TextModel, recipe: DiffusionRecipe, output: Path) -> None:
    """Write the U-Net, the text encoder and the configs that make `output` a checkpoint folder."""
    unet = denoiser.unet
    save_component(unet, unet.config, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    text_components = text.save(denoiser.text, output)
    write_json(output / "scheduler" / "scheduler_config.json", recipe.scheduler)
    write_json(output / "generation_config.json", recipe.generation_config)
    if "bert" in text_components:
        shutil.copytree(output / "vae", output / "vqvae", dirs_exist_ok=True)
    write_model_index(output, _model_index(recipe, text_components))


def _model_index(recipe: DiffusionRecipe, text_components: dict[str, list[str]]) -> dict[str, object]:
    shared = {
        **text_components,
        "scheduler": ["diffusers", recipe.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if "bert" in text_components:
        return {"_class_name": "LDMTextToImagePipeline", **shared, "vqvae": ["diffusers", "AutoencoderKL"]}
    unused = {"feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    return {"_class_name": "StableDiffusionPipeline", **shared, **unused, "vae": ["diffusers", "AutoencoderKL"]}
