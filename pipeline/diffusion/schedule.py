"""Noise schedules under diffusers' config keys: the share of signal and noise at each training timestep."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor

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
"""The default sampler of a checkpoint, by `_class_name` in its scheduler/scheduler_config.json."""

_REFUSED: Final = ("thresholding", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "use_lu_lambdas")

_ACCEPTED: Final = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_order": (2,),
    "solver_type": ("midpoint", "bh2", "logrho"),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero",),
}
"""Options that change the image, and the values that the samplers support."""

ALMOST_ZERO: Final = 2.0**-24
"""The last cumulative alpha of a zero terminal SNR schedule for samplers that divide by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScheduleConfig:
    """The options of a `scheduler_config.json`; None where the samplers' own defaults differ."""

    sampler: str = "ddim"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: Spacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool | None = None
    rescale_betas_zero_snr: bool = False
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Return the schedule of a scheduler_config.json; ValueError names an option that is not supported."""
        class_name = config.get("_class_name", "DDIMScheduler")
        if class_name not in SAMPLER_OF_CLASS:
            raise ValueError(f"scheduler class {class_name} is unknown; known are {', '.join(SAMPLER_OF_CLASS)}")
        for key in _REFUSED:
            if config.get(key):
                raise ValueError(f"scheduler option {key} is not supported")
        for key, accepted in _ACCEPTED.items():
            if key in config and config[key] not in accepted:
                known = ", ".join(map(str, accepted))
                raise ValueError(f"scheduler {key} {config[key]!r} is not supported; known: {known}")
        for key, kind in (
            ("beta_schedule", BetaSchedule),
            ("prediction_type", PredictionType),
            ("timestep_spacing", Spacing),
        ):
            if key in config and config[key] not in get_args(kind):
                raise ValueError(f"scheduler {key} {config[key]!r} is unknown; known are {', '.join(get_args(kind))}")
        sampler = SAMPLER_OF_CLASS[class_name]
        if sampler == "dpmpp_2m" and config.get("algorithm_type") == "sde-dpmsolver++":
            sampler = "dpmpp_2m_sde"
        if config.get("use_karras_sigmas"):
            sampler += "_karras"
        names = {field.name for field in fields(cls)} - {"sampler"}
        values = {name: value for name, value in config.items() if name in names}
        if values.get("trained_betas") is not None:
            values["trained_betas"] = tuple(values["trained_betas"])
        return cls(sampler=sampler, **values)

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
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float32)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float32) ** 2
        left = [math.cos((step / count + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(count + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(left)]
        return torch.tensor(betas, dtype=torch.float32)  # Nichol and Dhariwal 2021, eq. 17


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas rescaled so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas_bar = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
