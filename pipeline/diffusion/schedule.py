"""Noise schedules under diffusers' config keys: the share of signal and noise at each training timestep."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor

from pipeline.diffusion.options import DEFAULTS, OPTIONS, check_options

PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace"]

SAMPLER_OF_CLASS: Final = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
"""The default sampler of a checkpoint, by the class of its scheduler."""

_CHOICES: Final = {"beta_schedule": BetaSchedule, "prediction_type": PredictionType, "timestep_spacing": Spacing}
_NUMBERS: Final = (
    *("num_train_timesteps", "beta_start", "beta_end", "steps_offset"),
    *("clip_sample_range", "sigma_min", "sigma_max", "lambda_min_clipped"),
)
_READ_BY_ALL: Final = frozenset(
    {"sampler", "options", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
    | {"prediction_type", "timestep_spacing", "steps_offset"}
)

_BETA_START: Final = 0.0001
_BETA_END: Final = 0.02

ALMOST_ZERO: Final = 2.0**-24
"""The last cumulative alpha of a zero terminal SNR schedule for samplers that divide by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScheduleConfig:
    """The options of a `scheduler_config.json`; None where the samplers' own defaults differ."""

    sampler: str = "ddim"
    """The default sampler."""
    num_train_timesteps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: Spacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    rescale_betas_zero_snr: bool = False
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0
    variance_type: str = "fixed_small"
    skip_prk_steps: bool = True
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min_clipped: float = -math.inf
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole config, for the options that a sampler reads and does not support."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Return the schedule of a scheduler_config.json; ValueError for a class or a value that no sampler supports.

        Without `skip_prk_steps` a PNDMScheduler has the Runge-Kutta start, as in diffusers; if another class is the
        default, sampler pndm has none, as Stable Diffusion's."""
        sampler = _default_sampler(config)
        given = {key: value for key, value in config.items() if value is not None}
        for key, kind in _CHOICES.items():
            if key in given and given[key] not in get_args(kind):
                raise ValueError(f"scheduler {key} {given[key]!r} is unknown; known are {', '.join(get_args(kind))}")
        for key in _NUMBERS:
            if key in given and (not isinstance(given[key], int | float) or isinstance(given[key], bool)):
                raise ValueError(f"scheduler {key} {given[key]!r} is not a number")
        names = {each.name for each in fields(cls)} - {"sampler", "options"}
        values: dict[str, Any] = {name: value for name, value in given.items() if name in names}
        for name in {"trained_betas", "disable_corrector"} & values.keys():
            values[name] = tuple(values[name])
        values.setdefault("skip_prk_steps", sampler != "pndm")
        return cls(sampler=sampler, options=dict(config), **values)

    def for_sampler(self, sampler: str) -> Self:
        """Return the schedule as a sampler reads it; ValueError names an option that the sampler does not support."""
        check_options(sampler, {**self.options, "prediction_type": self.prediction_type})
        family = sampler.removesuffix("_karras")
        read = _READ_BY_ALL | OPTIONS[family].keys()
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name in read}
        for name, default in DEFAULTS.get(family, {}).items():
            values[name] = default if values[name] is None else values[name]
        return type(self)(**values)

    def alphas_cumprod(self) -> Tensor:
        """Return the share of the image's variance at each training timestep, (T,) in float64.

        Computed in float32, as training code does, so that tables agree with what the network saw.
        """
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return torch.cumprod(1 - betas, dim=0).double()

    def positive_alphas_cumprod(self) -> Tensor:
        """Return `alphas_cumprod` with ALMOST_ZERO instead of zero."""
        alphas = self.alphas_cumprod()
        return torch.where(alphas == 0, ALMOST_ZERO, alphas)

    def _betas(self) -> Tensor:
        count = self.num_train_timesteps
        start = _BETA_START if self.beta_start is None else self.beta_start
        end = _BETA_END if self.beta_end is None else self.beta_end
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        if self.beta_schedule == "linear":
            return torch.linspace(start, end, count, dtype=torch.float32)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
        left = [math.cos((step / count + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(count + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(left)]
        return torch.tensor(betas, dtype=torch.float32)  # Nichol and Dhariwal 2021, eq. 17


def _default_sampler(config: Mapping[str, Any]) -> str:
    """Return the sampler that a config's class and options select."""
    class_name = config.get("_class_name")
    if class_name not in SAMPLER_OF_CLASS:
        raise ValueError(f"scheduler class {class_name} is unknown; known are {', '.join(SAMPLER_OF_CLASS)}")
    sampler = SAMPLER_OF_CLASS[class_name]
    if sampler == "dpmpp_2m" and config.get("algorithm_type") == "sde-dpmsolver++":
        sampler = "dpmpp_2m_sde"
    is_karras = "use_karras_sigmas" in OPTIONS[sampler] and config.get("use_karras_sigmas")
    return f"{sampler}_karras" if is_karras else sampler


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas rescaled so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas_bar = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
