"""The latent consistency recipe: distills a text-to-image checkpoint to a few steps (Luo et al. 2023).

The student learns to predict, in one evaluation, the start of the trajectory of its teacher under classifier-free
guidance. Its own average at the next timestep of that trajectory is its target.
"""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.models.checkpoint.weights import channels_last, read_json
from pipeline.models.layers import guidance_embedding
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UNetConfig
from pipeline.training.base_model import BaseModel, base_model_width, load_base_model
from pipeline.training.consistency import (
    TIMESTEP_SCALING,
    consistency_function,
    ddim_step,
    pseudo_huber,
    sample_timestep_pairs,
)
from pipeline.training.data.examples import SCENES, Source
from pipeline.training.denoising import add_noise, per_image
from pipeline.training.encoded_images import EncodedImages
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.save import save_component, write_json, write_model_index

STEPS_OF_GRID: Final = 50
"""The number of timesteps that the LCM sampler selects from, `original_inference_steps` in diffusers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyRecipe:
    """The configuration of the latent consistency recipe."""

    base_model: str = "shapes"
    """The teacher: an embedded checkpoint or a folder."""
    source: Source = SCENES
    images: int
    """The number of images that are encoded once before training (fewer if the source has fewer)."""
    batch: int
    guidance_scales: tuple[float, float]
    """The range of the random guidance scale of the teacher; the student is conditioned on it."""
    guidance_width: int = 256
    """The width of the embedding of the guidance scale, `time_cond_proj_dim` of the U-Net."""
    skip: int
    """The timesteps between the two points of the trajectory that are compared, `k` in the paper."""
    huber: float = 0.001
    """The distance below which the loss is quadratic."""
    generation_config: dict[str, object]
    """The contents of generation_config.json."""
    seed: int
    loop: LoopConfig

    @property
    def width(self) -> int:
        """The side of the square training images in pixels."""
        return base_model_width(self.base_model)


LCM: Final = ConsistencyRecipe(
    images=20_000,
    batch=32,
    guidance_scales=(2.0, 6.0),
    skip=100,
    generation_config={"num_inference_steps": 4, "guidance_scale": 4.0},
    seed=11,
    loop=LoopConfig(steps=520, learning_rate=1e-3, warmup_steps=50, cooldown=0.6, average_decay=0.95, save_every=50),
)


@dataclass(frozen=True, slots=True)
class ConsistencyBatch:
    """Latents and noise (B, C, h, w), token ids (B, window), two timesteps and guidance scales (B,)."""

    latents: Tensor
    noise: Tensor
    tokens: Tensor
    timesteps: Tensor
    next_timesteps: Tensor
    guidance_scales: Tensor

    def local_rows(self, worker: Worker) -> "ConsistencyBatch":
        """Return the worker's rows, on its device."""
        tensors = (self.latents, self.noise, self.tokens, self.timesteps, self.next_timesteps, self.guidance_scales)
        return ConsistencyBatch(*(worker.local_rows(tensor) for tensor in tensors))


def train_consistency(recipe: ConsistencyRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Distill the recipe's model into a checkpoint in `output`; state and log are in `output/consistency`."""
    torch.manual_seed(recipe.seed)
    base, folder = load_base_model(recipe.base_model), output / "consistency"
    student = channels_last(student_unet(base.unet, recipe.guidance_width))
    target = copy.deepcopy(student)
    teacher = channels_last(base.unet.to(worker.device))
    base.text.network.to(worker.device)
    images = base.encode(recipe.source, folder / "latents.pt", worker, count=recipe.images, seed=recipe.seed)
    tokens, empty_tokens = base.text.tokens(images.captions), base.text.tokens([""]).to(worker.device)
    alphas, empty_states = base.alphas(worker), base.text_states(empty_tokens)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = _sample_batch(images, tokens, len(alphas), recipe, step_generator(recipe.seed, step))
        batch = batch.local_rows(worker)
        states = base.text_states(batch.tokens)
        embeddings = guidance_embedding(batch.guidance_scales, recipe.guidance_width)
        with torch.no_grad():
            noisy, nearer = teacher_pair(teacher, batch, states, empty_states, alphas, base.prediction_type)

        def predict(unet: nn.Module, latents: Tensor, timesteps: Tensor) -> Tensor:
            model_output = unet(latents, timesteps, states, guidance_embedding=embeddings)
            return consistency_function(model_output, latents, timesteps, alphas[timesteps], base.prediction_type)

        with torch.no_grad():
            goal = predict(target, nearer, batch.next_timesteps)
        predicted = predict(student, noisy, batch.timesteps)
        loss = pseudo_huber(predicted, goal, recipe.huber)
        return loss, {"reconstruction": (predicted.detach() - batch.latents).square().mean().item()}

    average = train(student, step_loss, recipe.loop, folder, worker, batch=recipe.batch, average=target).cpu()
    assert isinstance(average, UNet)
    if worker.rank == 0:
        _save(average, base, recipe, output)


def student_unet(teacher: UNet, guidance_width: int) -> UNet:
    """Return a trainable copy of a U-Net that also takes an embedding of the guidance scale, with zero weights."""
    assert isinstance(teacher.config, UNetConfig)
    student = UNet(replace(teacher.config, time_cond_proj_dim=guidance_width))
    projection = student.time_embedding.cond_proj
    assert projection is not None
    zeros = {"time_embedding.cond_proj.weight": torch.zeros_like(projection.weight)}
    student.load_state_dict(teacher.state_dict() | zeros)
    return student


def teacher_pair(
    teacher: nn.Module,
    batch: ConsistencyBatch,
    states: Tensor,
    empty_states: Tensor,
    alphas: Tensor,
    prediction_type: str,
) -> tuple[Tensor, Tensor]:
    """Return noisy latents, and the teacher's at the next timesteps: a DDIM step with guidance (Luo et al., eq. 14).

    `states` (B, T, D) and `empty_states` (1, T, D) are the text inputs of the captions and of the empty caption;
    `alphas` are the cumulative alphas of all timesteps, (T,)."""
    current_alphas, next_alphas = alphas[batch.timesteps], alphas[batch.next_timesteps]
    noisy = add_noise(batch.latents, batch.noise, current_alphas)
    both = torch.cat([states, empty_states.expand_as(states)])
    outputs = teacher(noisy.repeat(2, 1, 1, 1), batch.timesteps.repeat(2), both)
    conditional, unconditional = outputs.chunk(2)
    guided = unconditional + per_image(batch.guidance_scales) * (conditional - unconditional)
    return noisy, ddim_step(guided, noisy, current_alphas, next_alphas, prediction_type)


def _sample_batch(
    images: EncodedImages,
    tokens: Tensor,
    num_timesteps: int,
    recipe: ConsistencyRecipe,
    generator: torch.Generator,
) -> ConsistencyBatch:
    """Sample images with replacement, their latents, noise, pairs of timesteps and guidance scales."""
    indices = torch.randint(len(tokens), (recipe.batch,), generator=generator)
    latents = images.sample(indices, generator)
    noise = torch.randn(latents.shape, generator=generator).to(memory_format=torch.channels_last)
    timesteps, next_timesteps = sample_timestep_pairs(
        recipe.batch, num_timesteps, grid=num_timesteps // STEPS_OF_GRID, skip=recipe.skip, generator=generator
    )
    low, high = recipe.guidance_scales
    guidance_scales = low + (high - low) * torch.rand(recipe.batch, generator=generator)
    return ConsistencyBatch(latents, noise, tokens[indices], timesteps, next_timesteps, guidance_scales)


_SCHEDULE_KEYS: Final = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)
"""The options of the teacher's scheduler that describe its training."""


def _save(unet: UNet, base: BaseModel, recipe: ConsistencyRecipe, output: Path) -> None:
    """Write the student's U-Net in half precision, and copies of the teacher's other components."""
    save_component(unet, unet.config, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    index = read_json(base.folder / "model_index.json")
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(base.folder / name, output / name, dirs_exist_ok=True)
    schedule = {key: base.schedule_config[key] for key in _SCHEDULE_KEYS if key in base.schedule_config}
    constants = {"original_inference_steps": STEPS_OF_GRID, "timestep_scaling": TIMESTEP_SCALING, "clip_sample": False}
    write_json(output / "scheduler" / "scheduler_config.json", {"_class_name": "LCMScheduler", **schedule, **constants})
    write_json(output / "generation_config.json", recipe.generation_config)
    changes = {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    write_model_index(output, index | changes)
