"""Samplers against diffusers' schedulers, with the same network and the same noise, and against a known answer."""

import inspect
import itertools
import json
import logging
import math
import re
import sys
from typing import Any

import pytest
import torch
from diffusers import schedulers
from torch import Tensor

from pipeline.diffusion.catalog import CATALOG, SCHEDULERS, SIGMA_SPACINGS, all_names, split_name
from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.request import Conditioning, DenoisingRequest, KnownLatents
from pipeline.diffusion.samplers import sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.table import HISTORY, SamplerTable

logging.getLogger("diffusers").setLevel(logging.ERROR)

SAMPLERS = (
    *("ddpm", "ddim", "pndm", "euler", "euler_karras", "euler_exponential", "euler_beta", "euler_a", "heun"),
    *("heun_karras", "lms", "lms_karras", "kdpm2", "kdpm2_karras", "kdpm2_beta", "kdpm2_a", "kdpm2_a_exponential"),
    *("dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_lu", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_3m", "dpmpp_3m_sde"),
    *("dpm_2m", "dpm_3m", "dpm_2m_sde", "dpmpp_2s", "dpmpp_3s_karras", "dpmpp_2s_sde", "dpmpp_3s_sde", "dpm_3s"),
    *("deis", "deis_karras", "unipc", "unipc_karras", "unipc_beta", "sa_solver", "lcm", "tcd"),
)
"""A part of all names; `test_every_option_is_diffusers_or_refused_by_name` has all schedulers and options."""
PLAIN_SAMPLERS = [name for name in SAMPLERS if split_name(name)[1] is None]
BASE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MIXING = torch.tensor([[0.5, -0.2, 0.1, 0.3], [0.1, 0.4, -0.3, 0.2], [-0.2, 0.3, 0.6, 0.1], [0.3, 0.1, -0.1, 0.5]])


def network(latents: Tensor, timesteps: Tensor, *_: object) -> Tensor:
    """A cheap network that is far from linear, mixes channels and neighbors, and depends on the timestep."""
    time = timesteps.reshape(-1, 1, 1, 1).to(latents.dtype) / 1000
    mixed = (MIXING.to(latents.dtype)[None, :, :, None, None] * latents.roll(1, -1)[:, None]).sum(2)
    return torch.tanh(mixed * (0.5 + time) + 0.3 * torch.sin(3 * latents)) * 1.2


def reference_class(name: str) -> Any:
    return getattr(schedulers, name)


def reference_scheduler(config: dict[str, Any], sampler: str) -> Any:
    name, spacing = split_name(sampler)
    info = CATALOG[name]
    changes = dict(info.options)
    if spacing is not None:
        changes[SIGMA_SPACINGS[spacing]] = True
    if info.options.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver"):
        changes["final_sigmas_type"] = "sigma_min"
    if name == "pndm":
        changes["skip_prk_steps"] = True
    return reference_class(info.scheduler).from_config(config, **changes)


def reference(
    config: dict[str, Any], sampler: str, steps: int, strength: float | None, eta: float, mask: Tensor | None = None
) -> Tensor:
    """What diffusers' pipelines do between their first noise and the autoencoder; with a mask, the inpainting one."""
    return denoise(reference_scheduler(config, sampler), steps, strength, eta, mask)


def denoise(
    scheduler: Any,
    steps: int,
    strength: float | None = None,
    eta: float = 0.0,
    mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    scheduler.set_timesteps(steps)
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        vars(module)["randn_tensor"] = float32_noise  # which numbers are drawn depends on their type
    if dtype is torch.float64 and hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()  # some weights of some solvers are differences of large numbers
    noise = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    timesteps = scheduler.timesteps
    if strength is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        first = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        latents = scheduler.add_noise(picture(), noise, timesteps[:1])
    accepted = inspect.signature(scheduler.step).parameters
    options = {name: value for name, value in {"generator": generator, "eta": eta}.items() if name in accepted}
    for index, timestep in enumerate(timesteps):
        output = network(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
        if mask is not None:
            after = timesteps[index + 1 : index + 2]
            known = scheduler.add_noise(picture(), noise, after) if len(after) else picture()
            latents = (1 - mask) * known + mask * latents
    return latents[0]


def float32_noise(shape: Any, generator: torch.Generator, device: Any, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def picture() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def walk(table: SamplerTable) -> Tensor:
    """Return the latents of a table that is walked as `pipeline/diffusion/table.py` says, in float64."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 8, 8, generator=generator).double()
    x = table.start_signal * picture().double() + table.start_noise * noise
    anchor, history = torch.zeros_like(x), [torch.zeros_like(x)] * HISTORY
    for index in range(len(table)):
        output = network(table.c_in[index] * x, table.timesteps[index])
        denoised = (table.c_skip[index] * x + table.c_out[index] * output).clamp(-table.clip, table.clip)
        if table.thresholding is not None:
            threshold = torch.quantile(denoised.abs(), table.thresholding.ratio).clamp(1, table.thresholding.highest)
            denoised = denoised.clamp(-threshold, threshold) / threshold
        history = [denoised, *history[:-1]]
        fresh = torch.zeros_like(x)
        if table.draws_noise[index]:
            fresh = torch.randn(x.shape, generator=generator).double()
        terms = torch.stack([x, anchor, output, *history, fresh])
        x, anchor = torch.einsum("at,t...->a...", table.weights[index], terms)
    return x[0]


def run(table: SamplerTable, network: Any = network, mask: Tensor | None = None) -> Tensor:
    [latents] = run_all([table], network, mask)
    return latents


def run_all(tables: list[SamplerTable], network: Any = network, mask: Tensor | None = None) -> list[Tensor]:
    """Return the latents of rows of one seed that run together, one per table."""
    requests = [_request(index, table, mask) for index, table in enumerate(tables)]
    results = dict(LaneEngine(network, lanes=2, device="cpu", dtype=torch.float32).run(requests))
    return [torch.as_tensor(results[index]) for index in range(len(tables))]


def _request(key: int, table: SamplerTable, mask: Tensor | None) -> DenoisingRequest:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    return DenoisingRequest(
        key=key,
        table=table,
        latents=(table.start_signal * picture() + table.start_noise * noise)[0],
        generator=generator,
        conditions=(Conditioning(inputs={}),),
        guidance=Guidance(),
        known=None if mask is None else KnownLatents(latents=picture()[0], noise=noise[0], mask=mask),
    )


def assert_equal(
    config: dict[str, Any], sampler: str, steps: int, strength: float | None = None, eta: float = 0.0
) -> None:
    table = sampler_table(NoiseScheduleConfig.from_dict(config), sampler, steps, strength=strength, eta=eta)
    expected = reference(config, sampler, steps, strength, eta)
    difference = (run(table) - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert difference <= 1e-3


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_equals_diffusers(sampler: str, steps: int) -> None:
    spacings, predictions = ("leading", "trailing", "linspace"), ("epsilon", "v_prediction", "sample")
    pairs = itertools.product(spacings, predictions) if steps == 4 else zip(spacings, predictions, strict=True)
    for spacing, prediction in pairs:
        if prediction == "sample" and sampler.startswith(("pndm", "euler_a", "kdpm2")):
            continue  # diffusers refuses these
        assert_equal({**BASE, "timestep_spacing": spacing, "prediction_type": prediction}, sampler, steps)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("sampler", PLAIN_SAMPLERS)
def test_sampler_equals_diffusers_on_other_noise_schedules(sampler: str, beta_schedule: str) -> None:
    config = {**BASE, "beta_schedule": beta_schedule, "prediction_type": "v_prediction"}
    if sampler == "kdpm2_a" and beta_schedule == "squaredcos_cap_v2":
        return  # float32 is too coarse for diffusers' steps from the first noise level, 20,000
    expected = denoise(reference_scheduler(config, sampler), 6, dtype=torch.float64)
    table = sampler_table(NoiseScheduleConfig.from_dict(config), sampler, 6)
    assert (walk(table) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_sampler_equals_diffusers_at_zero_terminal_snr(sampler: str, steps: int) -> None:
    config = {**BASE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_equal(config, sampler, steps)


@pytest.mark.parametrize("sampler", ["heun", "lms", "pndm"])
def test_samplers_whose_scheduler_knows_no_zero_terminal_snr_ignore_it_as_diffusers_does(sampler: str) -> None:
    config = {**BASE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert_equal(config, sampler, 10)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_with_all_noise_runs_on_zero_terminal_snr_at_every_step_count(spacing: str) -> None:
    config = {**BASE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    schedule = NoiseScheduleConfig.from_dict(config)
    for steps in range(1, 101):
        assert sampler_table(schedule, "ddim", steps, eta=1.0).weights.isfinite().all()


BETAS = tuple(torch.linspace(0.001, 0.03, 1000).tolist())
OPTION_VALUES: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis", "noise_prediction", "nothing"),
    "beta_schedule": ("linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"),
    "clip_sample": (True, False),
    "corrector_order": (1, 3, 4),
    "disable_corrector": ([0, 2],),
    "euler_at_final": (True,),
    "final_sigmas_type": ("sigma_min",),
    "flow_shift": (3.0,),
    "interpolation_type": ("log_linear",),
    "lambda_min_clipped": (-5.1, -1.0),
    "lower_order_final": (False,),
    "original_inference_steps": (20, 100),
    "predict_x0": (False,),
    "prediction_type": ("v_prediction", "sample"),
    "predictor_order": (1, 3, 4),
    "rescale_betas_zero_snr": (True,),
    "sample_max_value": (1.1,),
    "set_alpha_to_one": (True,),
    "shift_terminal": (0.1,),
    "sigma_max": (9.0,),
    "sigma_min": (0.1,),
    "skip_prk_steps": (True, False),
    "solver_order": (1, 3),
    "solver_type": ("heun", "midpoint", "logrho", "bh1", "bh2"),
    "steps_offset": (0, 1),
    "thresholding": (True,),
    "timestep_scaling": (0.001,),
    "timestep_spacing": ("linspace", "trailing", "leading"),
    "timestep_type": ("continuous",),
    "trained_betas": (BETAS, BETAS[:500]),
    "use_beta_sigmas": (True,),
    "use_dynamic_shifting": (True,),
    "use_exponential_sigmas": (True,),
    "use_flow_sigmas": (True,),
    "use_karras_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "variance_type": ("fixed_large", "fixed_small_log", "fixed_large_log", "learned"),
}
CONTEXTS: tuple[tuple[dict[str, Any], int, float | None], ...] = (
    ({"timestep_spacing": "trailing"}, 7, None),
    ({"prediction_type": "v_prediction", "steps_offset": 1}, 7, 0.6),
    ({"use_karras_sigmas": True}, 7, None),
    ({"use_exponential_sigmas": True, "solver_order": 3}, 8, 0.5),
    ({"use_beta_sigmas": True, "solver_type": "heun", "solver_order": 3}, 7, None),
    ({"final_sigmas_type": "sigma_min", "use_karras_sigmas": True, "solver_order": 3, "thresholding": True}, 16, None),
    ({"final_sigmas_type": "sigma_min", "prediction_type": "v_prediction", "solver_type": "heun"}, 16, None),
    ({"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver", "solver_order": 3}, 7, None),
)
"""Other options, a number of steps, and a strength; below 15 steps `lower_order_final` counts."""
PLAIN = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("option", OPTION_VALUES)
@pytest.mark.parametrize("class_name", SCHEDULERS)
def test_every_option_is_diffusers_or_refused_by_name(class_name: str, option: str) -> None:
    scheduler_class, compared = reference_class(class_name), 0
    reads = {*inspect.signature(scheduler_class.__init__).parameters, "beta_schedule"}
    contexts = [each for each in CONTEXTS if "final_sigmas_type" in reads or "final_sigmas_type" not in each[0]]
    contexts = contexts if option in reads or option.startswith("sigma_") else contexts[:1]
    for value, (context, steps, strength) in itertools.product(OPTION_VALUES[option], contexts):
        if class_name.startswith("KDPM2Ancestral") and value == "squaredcos_cap_v2":
            continue  # float32 is too coarse for its steps from the first noise level, 20,000
        strength = None if class_name in NO_STRENGTH else strength
        config = {**PLAIN, **context, "_class_name": class_name, option: value}
        table, refused = table_or_reason(config, steps, strength)
        if table is None:
            assert any(f"scheduler {name} " in refused for name in config if name in reads), refused
            assert "is not supported" not in refused or any(f" {value!r} " in refused for value in config.values())
            continue
        try:
            expected = denoise(scheduler_class.from_config(config), steps, strength, dtype=torch.float64)
        except (AssertionError, IndexError, NotImplementedError, UnboundLocalError, ValueError):
            continue  # diffusers cannot run it
        if expected.isfinite().all():
            difference = (walk(table) - expected).abs().max() / expected.abs().max().clamp(min=1)
            assert difference <= 1e-4, (value, context, steps)
            compared += 1
    assert compared > 0 or option in reads


NO_STRENGTH = ("LMSDiscreteScheduler", "PNDMScheduler", "IPNDMScheduler")
"""See `test_lms_started_halfway_uses_the_slopes_that_it_has`; the Runge-Kutta start runs all its steps; and the last
has no add_noise."""


def table_or_reason(
    config: dict[str, Any], steps: int, strength: float | None = None
) -> tuple[SamplerTable | None, str]:
    try:
        schedule = NoiseScheduleConfig.from_dict(config)
        return sampler_table(schedule, schedule.sampler, steps, strength=strength), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("steps", [4, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_pndm_with_its_runge_kutta_start_equals_diffusers(spacing: str, steps: int) -> None:
    for prediction in ("epsilon", "v_prediction"):
        config = {**BASE, "timestep_spacing": spacing, "prediction_type": prediction, "_class_name": "PNDMScheduler"}
        expected = denoise(reference_class("PNDMScheduler").from_config(config), steps)
        table, _ = table_or_reason(config, steps)
        assert table is not None
        assert (run(table) - expected).abs().max() <= 1e-4


def test_pndm_with_its_runge_kutta_start_runs_all_its_steps() -> None:
    schedule = NoiseScheduleConfig.from_dict({**BASE, "_class_name": "PNDMScheduler"})
    for steps, strength in ((1, None), (3, None), (10, 0.5)):
        with pytest.raises(ValueError, match="pndm with skip_prk_steps false runs all of four or more steps"):
            sampler_table(schedule, "pndm", steps, strength=strength)
    assert len(sampler_table(schedule, "pndm", 10, strength=1.0)) == 12 + 7


@pytest.mark.parametrize("strength", [None, 0.5])
def test_unipc_without_some_corrections_equals_diffusers(strength: float | None) -> None:
    for changes in (
        {"disable_corrector": [0, 3, 6]},
        {"predict_x0": False, "final_sigmas_type": "sigma_min", "disable_corrector": [5]},
    ):
        config = {**BASE, **changes, "_class_name": "UniPCMultistepScheduler"}
        expected = denoise(reference_class("UniPCMultistepScheduler").from_config(config), 10, strength)
        table = sampler_table(NoiseScheduleConfig.from_dict(config), "unipc", 10, strength=strength)
        assert (run(table) - expected).abs().max() <= 1e-4


def test_a_row_with_another_sampler_is_checked_with_the_options_of_that_sampler() -> None:
    schedule = NoiseScheduleConfig.from_dict(
        {**BASE, "use_flow_sigmas": True, "solver_order": 3, "variance_type": "learned"}
    )
    sampler_table(schedule, "euler", 4)
    for sampler, message in (
        ("ddpm", "scheduler variance_type 'learned' is not supported by sampler ddpm"),
        ("dpmpp_2m_karras", "scheduler variance_type 'learned' is not supported by sampler dpmpp_2m_karras"),
        ("unipc", "scheduler use_flow_sigmas True is not supported by sampler unipc"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler_table(schedule, sampler, 4)


def test_a_name_that_gives_an_order_is_not_changed_by_the_checkpoints_order() -> None:
    third = NoiseScheduleConfig.from_dict({**BASE, "solver_order": 3, "_class_name": "DPMSolverMultistepScheduler"})
    second = NoiseScheduleConfig.from_dict({**BASE, "_class_name": "DPMSolverMultistepScheduler"})
    assert (third.sampler, second.sampler) == ("dpmpp_3m", "dpmpp_2m")
    for sampler in ("dpmpp_2m", "dpmpp_3m"):
        tables = [sampler_table(schedule, sampler, 9).weights for schedule in (second, third)]
        assert torch.equal(*tables)


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not name.startswith("lms")])
def test_image_to_image_equals_diffusers(sampler: str, strength: float) -> None:
    assert_equal(BASE, sampler, 10, strength=strength)


def test_lms_started_halfway_uses_the_slopes_that_it_has() -> None:
    """diffusers takes weights of four slopes for the one that it has; a constant slope shows what is right."""
    schedule = NoiseScheduleConfig.from_dict(BASE)
    table = sampler_table(schedule, "lms", 20, strength=0.5)
    assert torch.allclose(
        table.weights[:, 0, 3:8].sum(1)[:-1].cumsum(0), _sigma_steps(table)[1:] - _sigma_steps(table)[0]
    )


def _sigma_steps(table: SamplerTable) -> Tensor:
    return (1 / table.c_in**2 - 1).sqrt()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_equals_diffusers(eta: float) -> None:
    assert_equal(BASE, "ddim", 10, eta=eta)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "euler"])
def test_clipped_predictions_equal_diffusers(sampler: str) -> None:
    assert_equal({**BASE, "clip_sample": True, "clip_sample_range": 0.7}, sampler, 10)
    silent = {key: value for key, value in BASE.items() if key not in ("clip_sample", "set_alpha_to_one")}
    assert_equal(silent, sampler, 10)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "sa_solver", "lcm"])
def test_dynamic_thresholding_is_diffusers_and_a_matter_of_its_row(sampler: str) -> None:
    config = {**BASE, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4}
    assert_equal({**config, "clip_sample": True}, sampler, 8)
    tables = [sampler_table(NoiseScheduleConfig.from_dict(each), sampler, 8) for each in (config, BASE)]
    alone = [run(table) for table in tables]
    together = run_all(tables)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_timesteps_that_fall_between_two_are_diffusers(sampler: str) -> None:
    """999 / 30 * 15 is half a timestep, and it counts on which side it falls; trailing at 48 steps has such too."""
    for spacing, steps in (("linspace", 30), ("linspace", 31), ("trailing", 48)):
        config = {**BASE, "timestep_spacing": spacing}
        scheduler = reference_scheduler(config, sampler)
        scheduler.set_timesteps(steps)
        table = sampler_table(NoiseScheduleConfig.from_dict(config), sampler, steps)
        assert torch.allclose(table.timesteps, torch.as_tensor(scheduler.timesteps, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("sampler", ["euler_karras", "dpmpp_2m_karras", "dpmpp_2m_sde_karras", "unipc_karras"])
def test_karras_levels_on_a_cosine_schedule_are_evaluated_at_diffusers_timesteps(sampler: str) -> None:
    config = {**BASE, "beta_schedule": "squaredcos_cap_v2"}
    scheduler = reference_scheduler(config, sampler)
    scheduler.set_timesteps(7)
    table = sampler_table(NoiseScheduleConfig.from_dict(config), sampler, 7)
    there = torch.as_tensor(scheduler.timesteps, dtype=torch.float64)
    assert torch.allclose(
        table.timesteps[1:], there[1:], atol=1e-2
    )  # the first is float32's 998.9999, cut, in diffusers


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not name.startswith("lms")])
def test_known_latents_are_kept_as_diffusers_inpainting_keeps_them(sampler: str, strength: float | None) -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 3:] = 1
    table = sampler_table(NoiseScheduleConfig.from_dict(BASE), sampler, 6, strength=strength)
    expected = reference(BASE, sampler, 6, strength, 0.0, mask=mask)
    latents = run(table, mask=mask)
    assert (latents - expected).abs().max() <= 1e-4
    assert torch.equal(latents * (1 - mask), picture()[0] * (1 - mask))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_result_is_affine_in_latents_and_outputs(sampler: str) -> None:
    """With a network that is linear, the whole run must be."""
    table = sampler_table(NoiseScheduleConfig.from_dict(BASE), sampler, 5)

    def linear(latents: Tensor, *_: object) -> Tensor:
        return 0.3 * latents.flip(-1)

    def final(start: Tensor) -> Tensor:
        request = DenoisingRequest(
            key=0,
            table=table,
            latents=start,
            generator=torch.Generator().manual_seed(1),
            conditions=(Conditioning(inputs={}),),
            guidance=Guidance(),
        )
        [(_, latents)] = LaneEngine(linear, lanes=2, device="cpu", dtype=torch.float32).run([request])
        assert isinstance(latents, Tensor)
        return latents

    one, other = torch.randn(4, 4, 4), torch.randn(4, 4, 4)
    middle = (final(one) + final(other)) / 2
    assert torch.allclose(final((one + other) / 2), middle, rtol=1e-4, atol=1e-4 * middle.abs().max().item())


MEAN, DEVIATION = 0.7, 0.5
NOT_FOR_GAUSSIANS = ("lcm", "tcd", "ipndm", "dpmpp_2s_sde", "dpmpp_3s_sde", "dpmpp_3m_sde")
"""For other networks, slow to converge, or (the last one) with a term of diffusers' that grows with the steps."""


def gaussian_moments(sampler: str, steps: int) -> tuple[float, float]:
    """Mean and deviation of what a sampler draws with the best prediction for data N(MEAN, DEVIATION^2)."""
    schedule = NoiseScheduleConfig.from_dict({**BASE, "timestep_spacing": "trailing", "steps_offset": 0})
    alphas = schedule.alphas_cumprod()

    def exact_noise(latents: Tensor, timesteps: Tensor, *_: object) -> Tensor:
        low = timesteps.floor().long().clamp(0, len(alphas) - 1)
        high, part = (low + 1).clamp(max=len(alphas) - 1), timesteps - low
        levels = ((1 - alphas) / alphas).sqrt()
        sigma = (levels[low] + part * (levels[high] - levels[low])).float().reshape(-1, 1, 1, 1)
        signal = 1 / (1 + sigma**2).sqrt()
        variance = signal**2 * DEVIATION**2 + (signal * sigma) ** 2
        return signal * sigma * (latents - signal * MEAN) / variance

    table = sampler_table(schedule, sampler, steps)
    generator = torch.Generator().manual_seed(3)
    request = DenoisingRequest(
        key=0,
        table=table,
        latents=table.start_noise * torch.randn(4, 64, 64, generator=generator),
        generator=generator,
        conditions=(Conditioning(inputs={}),),
        guidance=Guidance(),
    )
    [(_, latents)] = LaneEngine(exact_noise, lanes=1, device="cpu", dtype=torch.float32).run([request])
    assert isinstance(latents, Tensor)
    return latents.mean().item(), latents.std().item()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in NOT_FOR_GAUSSIANS])
def test_sampler_recovers_mean_and_deviation_of_a_gaussian(sampler: str) -> None:
    mean, deviation = gaussian_moments(sampler, 100)
    assert math.isclose(mean, MEAN, abs_tol=0.03)
    assert math.isclose(deviation, DEVIATION, abs_tol=0.03)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name.startswith(("ddim", "ddpm", "euler", "heun"))])
def test_more_steps_come_closer_to_a_gaussian(sampler: str) -> None:
    few, many = (gaussian_moments(sampler, steps)[1] for steps in (6, 100))
    assert abs(many - DEVIATION) < abs(few - DEVIATION) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "dpm"}, 'sampler is "dpm", which does not exist; did you mean'),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; give 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001; give 1 to 1000"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000, too many"),
        ({"num_inference_steps": 1000, "sampler": "unipc"}, "num_inference_steps is 1000, too many"),
        ({"strength": 0.0}, "strength is 0; give more than 0, at most 1"),
        ({"strength": 0.1}, "strength 0.1 of 4 steps leaves none; give 0.25 or more"),
        ({"eta": 1.5}, "eta is 1.5; give 0 to 1"),
    ],
)
def test_what_can_not_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    schedule = NoiseScheduleConfig.from_dict(BASE)
    with pytest.raises(ValueError, match=message):
        sampler_table(schedule, **{"sampler": "ddim", "num_inference_steps": 4, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "scheduler class FlowMatchEulerDiscreteScheduler is not supported: it is for models of flow matching",
        ),
        (
            {"_class_name": "DPMSolverSDEScheduler"},
            "DPMSolverSDEScheduler is not supported: its noise comes from a Brown",
        ),
        ({"beta_schedule": "square"}, "scheduler beta_schedule 'square' is unknown"),
        ({"_class_name": None}, "scheduler class None is unknown"),
        ({"beta_start": "0.1"}, "scheduler beta_start '0.1' is not a number"),
    ],
)
def test_unknown_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseScheduleConfig.from_dict({**BASE, **change})


@pytest.mark.parametrize(
    ("class_name", "change", "message"),
    [
        (
            "EulerDiscreteScheduler",
            {"interpolation_type": "x"},
            "interpolation_type 'x' .* sampler euler; known: linear",
        ),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order 4 is not supported by .* known: 2, 3, 1"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "ode"},
            "algorithm_type 'ode' is not supported by DPMSolverM",
        ),
        ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "exclude each other"),
        ("DEISMultistepScheduler", {"thresholding": True}, "thresholding True is not supported by sampler deis"),
        ("SASolverScheduler", {"tau_func": "x"}, "tau_func 'x' is not supported by sampler sa_solver"),
        ("LCMScheduler", {"trained_betas": [0.1]}, "trained_betas has 1 values; num_train_timesteps is 1000"),
        ("LCMScheduler", {"original_inference_steps": 3}, "num_inference_steps is 4; give at most 3, the scheduler's"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 False cannot end at zero noise"),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type 'fixed_large_log' is not supported"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type 'sample' is not supported by sampler pndm"),
    ],
)
def test_options_that_the_sampler_reads_and_cannot_honor_are_refused(
    class_name: str, change: dict[str, Any], message: str
) -> None:
    table, refused = table_or_reason({**BASE, **change, "_class_name": class_name}, 4)
    assert table is None
    assert re.search(message, refused)


def test_the_schedulers_folder_gives_the_default_sampler() -> None:
    for sampler in all_names():
        config = json.loads(reference_scheduler(BASE, sampler).to_json_string())
        assert NoiseScheduleConfig.from_dict(config).sampler == sampler


@pytest.mark.parametrize("sampler", ["sa_solver", "deis"])
def test_the_algorithm_of_another_solver_does_not_keep_a_row_from_its_sampler(sampler: str) -> None:
    plain = {**BASE, "_class_name": "DPMSolverMultistepScheduler"}
    tables = [
        sampler_table(NoiseScheduleConfig.from_dict({**plain, **change}), sampler, 6).weights
        for change in ({}, {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"})
    ]
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])
