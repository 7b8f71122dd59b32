"""Latent consistency distillation: its formulas, a stopped run, and a checkpoint that diffusers loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.components import load_unet
from pipeline.training.base_model import load_base_model
from pipeline.training.consistency import (
    boundary_scalings,
    consistency_function,
    ddim_step,
    pseudo_huber,
    sample_timestep_pairs,
)
from pipeline.training.recipes.consistency import LCM, ConsistencyBatch, student_unet, teacher_pair, train_consistency
from tests.training.tiny_recipes import DIFFUSION, WIDTH, StoppingWorker, losses

SCHEDULE = {key: DIFFUSION.scheduler[key] for key in ("beta_start", "beta_end", "beta_schedule")}
LOOP = replace(LCM.loop, steps=40, learning_rate=3e-3, warmup_steps=5, log_every=10)
TINY = replace(LCM, images=64, batch=16, guidance_width=16, loop=LOOP)


def random_latents(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def alphas_cumprod() -> Tensor:
    return NoiseScheduleConfig.from_dict({"_class_name": "DDIMScheduler", **SCHEDULE}).alphas_cumprod().float()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_consistency_function_is_the_last_step_of_the_lcm_scheduler(prediction_type: str) -> None:
    scheduler = LCMScheduler(**SCHEDULE, prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(1)
    timesteps = torch.tensor([999, 259, 0])
    noisy, model_output = random_latents(3), random_latents(3, seed=1)
    ours = consistency_function(model_output, noisy, timesteps, alphas_cumprod()[timesteps], prediction_type)
    for index, timestep in enumerate(timesteps):
        scheduler.timesteps, scheduler._step_index = timestep[None], None
        step = scheduler.step(model_output[index : index + 1], timestep, noisy[index : index + 1], return_dict=False)
        torch.testing.assert_close(ours[index : index + 1], step[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[2], noisy[2])  # the boundary condition


def test_the_boundary_scalings_are_those_of_the_lcm_scheduler() -> None:
    for timestep in (0, 19, 999):
        expected = LCMScheduler().get_scalings_for_boundary_condition_discrete(torch.tensor(timestep))
        ours = boundary_scalings(torch.tensor([timestep]))
        torch.testing.assert_close([value.item() for value in ours], list(map(float, expected)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_of_the_teacher_is_that_of_the_ddim_scheduler_with_guidance(prediction_type: str) -> None:
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)  # steps of 100
    alphas, timestep = alphas_cumprod(), torch.tensor([700])
    states, empty = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    batch = ConsistencyBatch(
        latents=random_latents(1),
        noise=random_latents(1, seed=1),
        tokens=torch.zeros(1, 2),
        timesteps=timestep,
        next_timesteps=timestep - 100,
        guidance_scales=torch.tensor([3.5]),
    )

    class Teacher(torch.nn.Module):
        def forward(self, latents: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            return latents * (0.4 + encoder_hidden_states.mean((1, 2)))[:, None, None, None]

    noisy, nearer = teacher_pair(Teacher(), batch, states, empty, alphas, prediction_type)
    torch.testing.assert_close(noisy, scheduler.add_noise(batch.latents, batch.noise, timestep))
    guided = 0.4 * noisy + 3.5 * (1.4 * noisy - 0.4 * noisy)
    expected = scheduler.step(guided, 700, noisy, return_dict=False)[0]
    torch.testing.assert_close(nearer, expected, atol=1e-4, rtol=1e-4)


def test_a_step_to_the_same_noise_level_changes_nothing() -> None:
    noisy, alphas = random_latents(2), torch.tensor([0.0, 0.7])
    output = random_latents(2, seed=1)
    torch.testing.assert_close(ddim_step(output, noisy, alphas, alphas, "v_prediction"), noisy)


def test_timesteps_are_those_of_the_lcm_scheduler_and_the_next_ones_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    timesteps, following = sample_timestep_pairs(2000, 1000, grid=20, skip=100, generator=generator)
    scheduler = LCMScheduler()
    scheduler.set_timesteps(50)
    assert set(timesteps.tolist()) == set(scheduler.timesteps.tolist())
    assert torch.equal(following, (timesteps - 100).clamp_min(0))


def test_the_loss_is_quadratic_near_zero_and_linear_far_away() -> None:
    zeros = torch.zeros(1)
    assert pseudo_huber(torch.tensor([1e-5]), zeros, 1e-3).item() == pytest.approx(1e-10 / 2e-3, rel=0.05)
    assert pseudo_huber(torch.tensor([5.0]), zeros, 1e-3).item() == pytest.approx(5.0, rel=1e-3)


def test_a_new_student_gives_its_teachers_output_for_every_guidance_scale(checkpoint: Path) -> None:
    teacher = load_base_model(str(checkpoint)).unet
    student = student_unet(teacher, 16)
    noisy, timesteps, states = random_latents(2), torch.tensor([5, 900]), torch.randn(2, 3, 32)
    output = student(noisy, timesteps, states, guidance_embedding=torch.randn(2, 16))
    torch.testing.assert_close(output, teacher(noisy, timesteps, states))


def test_distillation_lowers_the_loss_and_diffusers_loads_the_student(checkpoint: Path, tmp_path: Path) -> None:
    train_consistency(replace(TINY, base_model=str(checkpoint)), tmp_path)
    values = losses(tmp_path / "consistency")
    assert values[-1] < 0.9 * values[0]
    unet = load_unet(tmp_path / "unet")
    projection = unet.time_embedding.cond_proj
    assert projection is not None and projection.weight.abs().max() > 0
    pipeline = LatentConsistencyModelPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert pipeline.scheduler.config["prediction_type"] == DIFFUSION.scheduler["prediction_type"]
    pipeline.set_progress_bar_config(disable=True)
    (image, _) = pipeline("a red circle", num_inference_steps=2, output_type="pt", return_dict=False)
    assert image.shape == (1, 3, WIDTH, WIDTH)


def test_a_stopped_distillation_goes_on_with_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    short = replace(TINY, base_model=str(checkpoint), loop=replace(TINY.loop, steps=8, save_every=4))
    train_consistency(short, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_consistency(short, tmp_path / "parts", StoppingWorker(calls=iter(range(6 * 6 + 3))))
    train_consistency(short, tmp_path / "parts")
    whole, parts = (load_unet(tmp_path / name / "unet").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_distilled_checkpoint_is_refused_as_a_teacher(checkpoint: Path, tmp_path: Path) -> None:
    short = replace(TINY, base_model=str(checkpoint), loop=replace(TINY.loop, steps=1))
    train_consistency(short, tmp_path)
    with pytest.raises(CheckpointError, match="guidance embedding .* distilled already"):
        load_base_model(str(tmp_path))
