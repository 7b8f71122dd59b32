"""Options of a run that take the place of the checkpoint's scheduler config, and samplers under other tools' names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import schedulers
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import CheckpointError, RunError
from pipeline.inference.checkpoint_info import read_checkpoint_info
from pipeline.inference.loaded_model import load_model
from pipeline.run.check import check_options
from pipeline.tasks.rows import Row
from tests.checkpoints import tiny_checkpoint
from tests.row_images import image_on


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def config_of(checkpoint: Path, sampler: str | None = None, **options: Any) -> RunConfig:
    defaults = RowDefaults(sampler=sampler, num_inference_steps=4, guidance_scale=3.0)
    return RunConfig(task="generate", model=str(checkpoint), defaults=defaults, **options)


def picture(config: RunConfig) -> tuple[np.ndarray, str]:
    loaded = load_model(config, "cpu")
    row = Row(prompt="a red circle", seed=5)
    image = image_on(loaded.engine, loaded.task, row)
    return image.astype(int), loaded.task.prepare(row).parameters.sampler


@pytest.mark.parametrize(
    ("name", "sampler", "scheduler", "options", "changes"),
    [
        ("Euler a", "euler_a", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
        ("Euler", "euler", "EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"}, {}),
        (
            "DDIM",
            "ddim",
            "DDIMScheduler",
            {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "zero_terminal_snr": True},
            {},
        ),
        ("DPM++ 2M Karras", "dpmpp_2m_karras", "DPMSolverMultistepScheduler", {}, {"use_karras_sigmas": True}),
        ("LCMScheduler", "lcm", "LCMScheduler", {"prediction_type": "v_prediction"}, {}),
        ("TCD", "tcd", "TCDScheduler", {}, {}),
    ],
)
def test_pictures_with_options_of_the_schedule_are_diffusers(
    checkpoint: Path, name: str, sampler: str, scheduler: str, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = config_of(checkpoint, name, **options)
    check_options(config)
    read_checkpoint_info(config)
    actual, recorded = picture(config)
    assert recorded == sampler
    changes = {**changes, **options}
    if "zero_terminal_snr" in changes:
        changes["rescale_betas_zero_snr"] = changes.pop("zero_terminal_snr")
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.scheduler = getattr(schedulers, scheduler).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    [image], _ = pipeline(
        "a red circle", num_inference_steps=4, guidance_scale=3.0, generator=generator, return_dict=False
    )
    assert np.abs(actual - np.asarray(image).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("lcm", {"timestep_spacing": "trailing"}, "--timestep-spacing has no effect on sampler lcm"),
        ("euler a", {"prediction_type": "flow"}, "--prediction-type flow is unknown; known are epsilon, v_prediction"),
        (None, {"zero_terminal_snr": True}, "--zero-terminal-snr has no effect on sampler pndm"),
        ("ddim", {"zero_terminal_snr": True}, "--zero-terminal-snr needs prediction_type v_prediction or sample"),
    ],
)
def test_an_option_that_the_runs_sampler_cannot_honor_is_refused_before_the_run(
    checkpoint: Path, sampler: str | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_info(config_of(checkpoint, sampler, **options))
    read_checkpoint_info(config_of(checkpoint, sampler, zero_terminal_snr=False))


def test_an_unknown_sampler_is_refused_before_the_model_is_read(checkpoint: Path) -> None:
    with pytest.raises(RunError, match='--sampler is "eulr", which does not exist; did you mean "euler", "euler_a"?'):
        check_options(config_of(checkpoint, "eulr"))
