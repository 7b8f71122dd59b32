"""The options of a scheduler_config.json that each scheduler class of diffusers reads.

A config may hold options that its scheduler does not read: diffusers' `from_config` carries them from one scheduler to
the next. They change nothing, so they are neither refused nor in force.
"""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.diffusion.catalog import CATALOG, split_name

Accepted = tuple[Any, ...] | None
"""The values of an option that a scheduler supports; None: all of them."""
Options = Mapping[str, Accepted]

OVERRIDES: Final = "_overrides"
"""The key of a schedule's config for the options that the run gives: their command-line flags by name."""

_PURE_NOISE: Final = ("DDPMScheduler", "DDIMScheduler", "LCMScheduler", "TCDScheduler")
"""The schedulers whose first timestep has no signal left at zero terminal SNR; noise predicted there says nothing."""

NOISE_ALGORITHMS: Final = ("dpmsolver", "sde-dpmsolver", "noise_prediction")
"""The values of `algorithm_type` whose predictions are noise; those of the others are denoised latents."""

_OFF: Final = (False,)
_BETAS: Final[Options] = {
    "num_train_timesteps": None,
    "beta_start": None,
    "beta_end": None,
    "beta_schedule": None,
    "trained_betas": None,
}
_PREDICTION: Final[Options] = {"prediction_type": None}
_TIMESTEPS: Final[Options] = {"timestep_spacing": None, "steps_offset": None}
_COMMON: Final[Options] = {**_BETAS, **_PREDICTION, **_TIMESTEPS}
_CLIPPING: Final[Options] = {"clip_sample": None, "clip_sample_range": None}
_BOUNDS: Final[Options] = {"sigma_min": None, "sigma_max": None}
_FINAL: Final[Options] = {"final_sigmas_type": ("zero", "sigma_min")}
_ZERO_SNR: Final[Options] = {"rescale_betas_zero_snr": None}
_THRESHOLDING: Final[Options] = {"thresholding": None, "dynamic_thresholding_ratio": None, "sample_max_value": None}
_VARIANCE: Final[Options] = {
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")  # of DDPM: no effect
}
_DPM_SOLVER: Final[Options] = {
    **_BETAS,
    **_PREDICTION,
    **_BOUNDS,
    **_FINAL,
    **_THRESHOLDING,
    **_VARIANCE,
    "use_flow_sigmas": _OFF,
    "algorithm_type": None,
    "solver_order": None,
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),  # diffusers takes midpoint for those of other solvers
    "lower_order_final": None,
    "lambda_min_clipped": None,
}
_CONSISTENCY: Final[Options] = {
    **_BETAS,
    **_PREDICTION,
    **_ZERO_SNR,
    "original_inference_steps": None,
    "set_alpha_to_one": None,
}

OPTIONS: Final[Mapping[str, Options]] = {
    "DDPMScheduler": {
        **_COMMON,
        **_CLIPPING,
        **_ZERO_SNR,
        **_THRESHOLDING,
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),  # NaN in diffusers: fixed_large_log
    },
    "DDIMScheduler": {**_COMMON, **_CLIPPING, **_ZERO_SNR, **_THRESHOLDING, "set_alpha_to_one": None},
    "PNDMScheduler": {
        **_COMMON,
        "prediction_type": ("epsilon", "v_prediction"),
        "set_alpha_to_one": None,
        "skip_prk_steps": None,
    },
    "IPNDMScheduler": {"num_train_timesteps": None, "trained_betas": ()},
    "EulerDiscreteScheduler": {
        **_COMMON,
        **_BOUNDS,
        **_FINAL,
        **_ZERO_SNR,
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    },
    "EulerAncestralDiscreteScheduler": {**_COMMON, **_ZERO_SNR},
    "HeunDiscreteScheduler": {**_COMMON, **_BOUNDS, **_CLIPPING},
    "LMSDiscreteScheduler": {**_COMMON, **_BOUNDS},
    "KDPM2DiscreteScheduler": {**_COMMON, **_BOUNDS, "prediction_type": ("epsilon", "v_prediction")},
    "KDPM2AncestralDiscreteScheduler": {**_COMMON, **_BOUNDS, "prediction_type": ("epsilon", "v_prediction")},
    "DPMSolverMultistepScheduler": {**_DPM_SOLVER, **_TIMESTEPS, **_ZERO_SNR, "euler_at_final": None},
    "DPMSolverSinglestepScheduler": _DPM_SOLVER,
    "DEISMultistepScheduler": {
        **_COMMON,
        **_BOUNDS,
        "thresholding": _OFF,
        "use_flow_sigmas": _OFF,
        "algorithm_type": (
            "deis",
            "dpmsolver++",
            "sde-dpmsolver++",
            "dpmsolver",
            "sde-dpmsolver",
        ),  # of other solvers: no effect
        "solver_order": (1, 2, 3),
        "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),  # and logrho
        "lower_order_final": None,
    },
    "UniPCMultistepScheduler": {
        **_COMMON,
        **_BOUNDS,
        **_FINAL,
        **_ZERO_SNR,
        **_THRESHOLDING,
        "use_flow_sigmas": _OFF,
        "use_dynamic_shifting": _OFF,
        "shift_terminal": (),
        "solver_order": (1, 2, 3),
        "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),  # diffusers takes bh2 for those of other solvers
        "solver_p": (),
        "lower_order_final": None,
        "predict_x0": None,
        "disable_corrector": None,
    },
    "SASolverScheduler": {
        **_COMMON,
        **_BOUNDS,
        **_THRESHOLDING,
        **_VARIANCE,
        "use_flow_sigmas": _OFF,
        "algorithm_type": ("data_prediction", "noise_prediction", "deis", "dpmsolver++", "sde-dpmsolver++"),  # as data
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4),
        "tau_func": (),
        "lower_order_final": None,
        "lambda_min_clipped": None,
    },
    "LCMScheduler": {**_CONSISTENCY, **_CLIPPING, **_THRESHOLDING, "timestep_scaling": None},
    "TCDScheduler": _CONSISTENCY,
}
"""By scheduler class: the options that it reads, but for those that a sampler's name gives (see `catalog.py`)."""

_KARRAS_BETAS: Final = {"beta_start": 0.00085, "beta_end": 0.012}
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "HeunDiscreteScheduler": _KARRAS_BETAS,
    "KDPM2DiscreteScheduler": _KARRAS_BETAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS_BETAS,
    "LCMScheduler": {**_KARRAS_BETAS, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_KARRAS_BETAS, "beta_schedule": "scaled_linear"},
    "DPMSolverSinglestepScheduler": {"lower_order_final": False},
}
"""The defaults of diffusers' schedulers where they differ from the others'."""


def check_options(sampler: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the sampler reads, with a value that it does not support.

    An option that the run gives must also be one that the sampler reads."""
    info, flags = CATALOG[split_name(sampler)[0]], options.get(OVERRIDES) or {}
    read = OPTIONS[info.scheduler]
    for key, flag in flags.items():
        if key not in read:
            raise ValueError(f"{flag} has no effect on sampler {sampler}, which does not read {key}; leave it out")
    for key, accepted in read.items():
        value = options.get(key)
        if key in info.options or value is None or accepted is None or value in accepted:
            continue
        known = f"; known: {', '.join(map(str, accepted))}" if accepted else ""
        option = f"{flags[key]} {value}" if key in flags else f"scheduler {key} {value!r}"
        raise ValueError(f"{option} is not supported by sampler {sampler}{known}")
    _check_combinations(sampler, {**options, **info.options}, info.scheduler)


def _check_combinations(sampler: str, options: Mapping[str, Any], scheduler: str) -> None:
    """Raise ValueError for options that do not go together."""
    zero_snr = (options.get(OVERRIDES) or {}).get("rescale_betas_zero_snr")
    if zero_snr and scheduler in _PURE_NOISE and options.get("prediction_type") == "epsilon":
        raise ValueError(f"{zero_snr} needs prediction_type v_prediction or sample for {sampler}; it is epsilon")
    ends_at_zero = (options.get("final_sigmas_type") or "zero") == "zero"
    predicts_noise = "algorithm_type" in OPTIONS[scheduler] and options.get("algorithm_type") in NOISE_ALGORITHMS
    if scheduler.startswith("DEIS"):
        return
    if scheduler.startswith("DPM") and predicts_noise and options.get("final_sigmas_type") == "zero":
        raise ValueError(f"scheduler final_sigmas_type 'zero' is not supported by sampler {sampler}; known: sigma_min")
    if predicts_noise and options.get("thresholding"):
        raise ValueError(f"scheduler thresholding True is not supported by sampler {sampler}, which predicts noise")
    if scheduler.startswith("UniPC") and ends_at_zero:
        for key in ("predict_x0", "lower_order_final"):
            if options.get(key) is False:
                raise ValueError(
                    f"scheduler {key} False cannot end at zero noise; it needs final_sigmas_type sigma_min"
                )
