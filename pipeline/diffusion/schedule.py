"""Noise schedules under diffusers' config keys: the share of signal and noise at each training timestep."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor

from pipeline.diffusion.catalog import CATALOG, sampler_of_scheduler, split_name
from pipeline.diffusion.options import DEFAULTS, OPTIONS, OVERRIDES, check_options

PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"]
Spacing = Literal["leading", "trailing", "linspace"]

_CHOICES: Final = {"beta_schedule": BetaSchedule, "prediction_type": PredictionType, "timestep_spacing": Spacing}
_NUMBERS: Final = (
    *("num_train_timesteps", "beta_start", "beta_end", "steps_offset", "original_inference_steps", "timestep_scaling"),
    *("clip_sample_range", "sigma_min", "sigma_max", "lambda_min_clipped"),
    *("dynamic_thresholding_ratio", "sample_max_value"),
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
    beta_schedule: BetaSchedule | None = None
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
    interpolation_type: str = "linear"
    final_sigmas_type: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min_clipped: float = -math.inf
    algorithm_type: str | None = None
    solver_order: int = 2
    solver_type: str | None = None
    predictor_order: int = 2
    corrector_order: int = 2
    lower_order_final: bool | None = None
    euler_at_final: bool = False
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole config, for the options that a sampler reads and does not support."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Return the schedule of a scheduler_config.json; ValueError for a class or a value that no sampler supports.

        Without `skip_prk_steps` a PNDMScheduler has the Runge-Kutta start, as in diffusers; if another class is the
        default, sampler pndm has none, as Stable Diffusion's."""
        sampler = sampler_of_scheduler(config)
        flags = config.get(OVERRIDES) or {}
        given = {key: value for key, value in config.items() if value is not None}
        for key, kind in _CHOICES.items():
            if key in given and given[key] not in get_args(kind):
                option = f"{flags[key]} {given[key]}" if key in flags else f"scheduler {key} {given[key]!r}"
                raise ValueError(f"{option} is unknown; known are {', '.join(get_args(kind))}")
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
        info = CATALOG[split_name(sampler)[0]]
        read = {"sampler", "options"} | OPTIONS[info.scheduler].keys()
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name in read}
        for name, default in DEFAULTS.get(info.scheduler, {}).items():
            values[name] = default if values[name] is None else values[name]
        return type(self)(**{**values, **info.options})

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
            if len(self.trained_betas) != count:
                raise ValueError(
                    f"scheduler trained_betas has {len(self.trained_betas)} values; num_train_timesteps is {count}"
                )
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        if self.beta_schedule in (None, "linear"):
            return torch.linspace(start, end, count, dtype=torch.float32)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
        if self.beta_schedule == "sigmoid":
            return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
        shares = [_SHARES[self.beta_schedule](step / count) for step in range(count + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(shares)]
        return torch.tensor(betas, dtype=torch.float32)


def _laplace(time: float) -> float:
    """Return the share of signal of the Laplace schedule (Hang et al. 2024, table 1)."""
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * math.fabs(0.5 - time) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


_SHARES: Final[Mapping[str | None, Callable[[float], float]]] = {
    "squaredcos_cap_v2": lambda time: math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda time: math.exp(time * -12.0),
}
"""The share of signal at a time from 0 to 1; squaredcos_cap_v2 is that of Nichol and Dhariwal 2021, eq. 17."""


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas rescaled so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas_bar = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
