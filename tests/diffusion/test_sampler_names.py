"""The names of samplers: other tools' spellings, diffusers' classes, and what is not known."""

import pytest

from pipeline.diffusion.catalog import CATALOG, SCHEDULERS, all_names, canonical_name, sampler_of_scheduler
from pipeline.diffusion.options import OPTIONS, OVERRIDES
from pipeline.diffusion.samplers import SAMPLERS, check_sampler
from pipeline.diffusion.schedule import NoiseScheduleConfig


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("Euler a", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("k_euler_a", "euler_a"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("sample_euler_ancestral", "euler_a"),
        ("DDIM", "ddim"),
        ("DDIMParallelScheduler", "ddim"),
        ("PLMS", "pndm"),
        ("Euler Karras", "euler_karras"),
        ("euler_k", "euler_karras"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m sde karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde_exponential"),
        ("dpmpp_2m_k", "dpmpp_2m_karras"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverSinglestepScheduler", "dpmpp_2s"),
        ("DPM2 a Karras", "kdpm2_a_karras"),
        ("dpm_2_ancestral", "kdpm2_a"),
        ("k_dpm_2", "kdpm2"),
        ("LMS Karras", "lms_karras"),
        ("uni_pc", "unipc"),
        ("UniPC", "unipc"),
        ("LCMScheduler", "lcm"),
        ("heun_beta", "heun_beta"),
        ("SASolverScheduler", "sa_solver"),
    ],
)
def test_names_of_other_tools_are_understood(name: str, sampler: str) -> None:
    assert canonical_name(name) == sampler


def test_every_name_is_its_own_and_every_class_has_one() -> None:
    assert [canonical_name(name) for name in all_names()] == list(all_names()) == list(SAMPLERS)
    assert tuple(OPTIONS) == SCHEDULERS
    for scheduler in SCHEDULERS:
        name = sampler_of_scheduler({"_class_name": scheduler})
        assert (CATALOG[name].scheduler, canonical_name(scheduler)) == (scheduler, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eulr", 'sampler is "eulr", which does not exist; did you mean "euler", "euler_a"?'),
        ("lcm_karras", 'sampler is "lcm_karras", which does not exist; did you mean'),
        ("zzz", 'sampler is "zzz", which does not exist; there are ddpm, ddim, pndm'),
        ("DPM++ SDE", r'"DPM\+\+ SDE" \(DPMSolverSDEScheduler\), which is not supported: its noise comes from a Brown'),
        ("FlowMatchEulerDiscreteScheduler", "is not supported: it is for models of flow matching"),
    ],
)
def test_other_names_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        canonical_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampler", "option", "value", "message"),
    [
        ("lcm", "timestep_spacing", "trailing", "--flag has no effect on sampler lcm, which does not read timestep_sp"),
        ("kdpm2", "prediction_type", "sample", "--flag sample is not supported by sampler kdpm2; known: epsilon, v_pr"),
        ("heun", "rescale_betas_zero_snr", True, "--flag has no effect on sampler heun"),
        ("ddim", "rescale_betas_zero_snr", True, "--flag needs prediction_type v_prediction or sample for ddim"),
    ],
)
def test_an_option_of_the_run_that_a_sampler_cannot_honor_is_refused_by_its_flag(
    sampler: str, option: str, value: object, message: str
) -> None:
    config = {"_class_name": "DDIMScheduler", option: value, OVERRIDES: {option: "--flag"}}
    with pytest.raises(ValueError, match=message):
        check_sampler(NoiseScheduleConfig.from_dict(config), sampler)
    check_sampler(NoiseScheduleConfig.from_dict({**config, OVERRIDES: {}}), "euler")
