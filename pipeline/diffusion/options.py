"""The options of a scheduler_config.json that each sampler reads: those that its scheduler in diffusers reads.

A config may hold options that its sampler does not read: diffusers' `from_config` carries them from one scheduler to
the next. They change nothing, so they are neither refused nor in force.
"""

from collections.abc import Mapping
from typing import Any, Final

Accepted = tuple[Any, ...] | None
"""The values of an option that a sampler supports; None: all of them."""

_OFF: Final = (False,)
_SIGMA_SPACING: Final[Mapping[str, Accepted]] = {
    "use_karras_sigmas": None,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
}
_CLIPPING: Final[Mapping[str, Accepted]] = {"clip_sample": None, "clip_sample_range": None}
_BOUNDS: Final[Mapping[str, Accepted]] = {"sigma_min": None, "sigma_max": None}
_FINAL: Final[Mapping[str, Accepted]] = {"final_sigmas_type": ("zero", "sigma_min")}
_ZERO_SNR: Final[Mapping[str, Accepted]] = {"rescale_betas_zero_snr": None}
_DPM_SOLVER: Final[Mapping[str, Accepted]] = {
    **_SIGMA_SPACING,
    **_BOUNDS,
    **_FINAL,
    **_ZERO_SNR,
    "thresholding": _OFF,
    "use_lu_lambdas": _OFF,
    "use_flow_sigmas": _OFF,
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # diffusers takes midpoint for those of other solvers
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # of DDPM: no effect
    "lower_order_final": None,
    "euler_at_final": None,
    "lambda_min_clipped": None,
}

OPTIONS: Final[Mapping[str, Mapping[str, Accepted]]] = {
    "ddpm": {
        **_CLIPPING,
        **_ZERO_SNR,
        "thresholding": _OFF,
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
        ),  # NaN in diffusers: fixed_large_log
    },
    "ddim": {**_CLIPPING, **_ZERO_SNR, "thresholding": _OFF, "set_alpha_to_one": None},
    "pndm": {
        "prediction_type": ("epsilon", "v_prediction"),
        "set_alpha_to_one": None,
        "skip_prk_steps": None,
    },
    "euler": {
        **_SIGMA_SPACING,
        **_BOUNDS,
        **_FINAL,
        **_ZERO_SNR,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete", "continuous"),
    },
    "euler_a": _ZERO_SNR,
    "heun": {**_SIGMA_SPACING, **_BOUNDS, **_CLIPPING},
    "lms": _SIGMA_SPACING,
    "dpmpp_2m": _DPM_SOLVER,
    "dpmpp_2m_sde": _DPM_SOLVER,
    "unipc": {
        **_SIGMA_SPACING,
        **_BOUNDS,
        **_FINAL,
        **_ZERO_SNR,
        "thresholding": _OFF,
        "use_flow_sigmas": _OFF,
        "use_dynamic_shifting": _OFF,
        "shift_terminal": (),
        "solver_order": (2,),
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # diffusers takes bh2 for those of other solvers
        "solver_p": (),
        "lower_order_final": (True,),
        "predict_x0": None,
        "disable_corrector": None,
    },
}
"""By sampler without `_karras`: the options that it reads beside those that all read."""

DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {"heun": {"beta_start": 0.00085, "beta_end": 0.012}}
"""The defaults of diffusers' schedulers where they differ from the others'."""


def check_options(sampler: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that the sampler reads, with a value that it does not support."""
    for key, accepted in OPTIONS[sampler.removesuffix("_karras")].items():
        value = options.get(key)
        if value is not None and accepted is not None and value not in accepted:
            known = f"; known: {', '.join(map(str, accepted))}" if accepted else ""
            raise ValueError(f"scheduler {key} {value!r} is not supported by sampler {sampler}{known}")
    ends_at_zero = (options.get("final_sigmas_type") or "zero") == "zero"
    if sampler.startswith("unipc") and options.get("predict_x0") is False and ends_at_zero:
        raise ValueError("scheduler predict_x0 False cannot end at zero noise; it needs final_sigmas_type sigma_min")
