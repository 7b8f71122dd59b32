"""The names of samplers: which scheduler class of diffusers each stands for, and the other names that people use."""

import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SIGMA_SPACINGS: Final = {
    "karras": "use_karras_sigmas",
    "lu": "use_lu_lambdas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Suffixes of sampler names, and the scheduler options that they stand for; an earlier one comes before a later one."""

_ALGORITHMS: Final = {
    "dpmsolver++": "dpmpp_{order}{kind}",
    "sde-dpmsolver++": "dpmpp_{order}{kind}_sde",
    "dpmsolver": "dpm_{order}{kind}",
    "sde-dpmsolver": "dpm_{order}{kind}_sde",
}
_NEAR: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerInfo:
    """What a sampler's name stands for."""

    scheduler: str
    """The class in diffusers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of the class that the name gives; a checkpoint's config does not change them."""
    spacings: tuple[str, ...] = ()
    """The suffixes of SIGMA_SPACINGS that the name takes."""
    aliases: tuple[str, ...] = ()


_K: Final = ("karras", "exponential", "beta")


def _dpm_solvers(kind: str, scheduler: str, spacings: tuple[str, ...]) -> dict[str, SamplerInfo]:
    """Return DPM-Solver's algorithms and orders; diffusers has no third order of the multistep sde-dpmsolver."""
    return {
        name.format(order=order, kind=kind): SamplerInfo(
            scheduler=scheduler, options={"algorithm_type": algorithm, "solver_order": order}, spacings=spacings
        )
        for algorithm, name in _ALGORITHMS.items()
        for order in (2, 3, 1)
        if algorithm != "sde-dpmsolver" or (kind == "m" and order < 3)
    }


CATALOG: Final[Mapping[str, SamplerInfo]] = {
    "ddpm": SamplerInfo(scheduler="DDPMScheduler"),
    "ddim": SamplerInfo(scheduler="DDIMScheduler"),
    "pndm": SamplerInfo(scheduler="PNDMScheduler", aliases=("plms",)),
    "ipndm": SamplerInfo(scheduler="IPNDMScheduler"),
    "euler": SamplerInfo(scheduler="EulerDiscreteScheduler", spacings=_K),
    "euler_a": SamplerInfo(scheduler="EulerAncestralDiscreteScheduler"),
    "heun": SamplerInfo(scheduler="HeunDiscreteScheduler", spacings=_K),
    "lms": SamplerInfo(scheduler="LMSDiscreteScheduler", spacings=_K),
    "kdpm2": SamplerInfo(scheduler="KDPM2DiscreteScheduler", spacings=_K, aliases=("dpm2", "kdpm_2")),
    "kdpm2_a": SamplerInfo(scheduler="KDPM2AncestralDiscreteScheduler", spacings=_K, aliases=("dpm2_a", "kdpm_2_a")),
    **_dpm_solvers("m", "DPMSolverMultistepScheduler", ("karras", "lu", "exponential", "beta")),
    **_dpm_solvers("s", "DPMSolverSinglestepScheduler", _K),
    "deis": SamplerInfo(scheduler="DEISMultistepScheduler", spacings=_K),
    "unipc": SamplerInfo(scheduler="UniPCMultistepScheduler", spacings=_K, aliases=("uni_pc_bh2",)),
    "sa_solver": SamplerInfo(scheduler="SASolverScheduler", spacings=_K),
    "lcm": SamplerInfo(scheduler="LCMScheduler"),
    "tcd": SamplerInfo(scheduler="TCDScheduler"),
}
"""Every sampler by its name without a suffix; the first name of a scheduler class has the class's default options."""

SCHEDULERS: Final = tuple(dict.fromkeys(info.scheduler for info in CATALOG.values()))
"""The scheduler classes of diffusers that are supported."""

_SAME: Final = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
_FLOW: Final = "it is for models of flow matching"
_EDM: Final = "it is for models of Karras et al. 2022 (EDM)"
_UNSUPPORTED: Final = {
    "DPMSolverSDEScheduler": "its noise comes from a Brownian tree; dpmpp_2m_sde is near to it",
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "CosineDPMSolverMultistepScheduler": _EDM,
    "CMStochasticIterativeScheduler": "it is for consistency models of Song et al. 2023",
}
_UNSUPPORTED_NAMES: Final = {
    "dpmppsde": "DPMSolverSDEScheduler",
    "dpmppsdekarras": "DPMSolverSDEScheduler",
    "dpmppsdeexponential": "DPMSolverSDEScheduler",
}


def all_names() -> Iterator[str]:
    """Yield every sampler's name, with and without its suffixes."""
    for name, info in CATALOG.items():
        yield name
        yield from (f"{name}_{spacing}" for spacing in info.spacings)


def split_name(sampler: str) -> tuple[str, str | None]:
    """Return a sampler's name in CATALOG, and its suffix in SIGMA_SPACINGS."""
    name, _, spacing = sampler.rpartition("_")
    return (name, spacing) if spacing in SIGMA_SPACINGS else (sampler, None)


def canonical_name(name: str) -> str:
    """Return the sampler that a name in any of the field's spellings means ("DPM++ 2M Karras": "dpmpp_2m_karras").

    ValueError, with the nearest names, if there is none."""
    plain = _normalized(name)
    spellings = (plain, plain.removeprefix("sample"), plain.removeprefix("k"))
    for spelling in (*spellings, *(f"{each[:-1]}karras" for each in spellings if each.endswith("k"))):
        if spelling in _spellings():
            return _spellings()[spelling]
    if (scheduler := _UNSUPPORTED_NAMES.get(plain, name)) in _UNSUPPORTED:
        raise ValueError(f'sampler is "{name}" ({scheduler}), which is not supported: {_UNSUPPORTED[scheduler]}')
    near = dict.fromkeys(_spellings()[each] for each in difflib.get_close_matches(plain, _spellings(), n=2 * _NEAR))
    near = [each for each in near if split_name(each)[1] is None] or list(near)
    listed = ", ".join(f'"{each}"' for each in near[:_NEAR])
    hint = f"did you mean {listed}?" if near else f"there are {', '.join(CATALOG)}"
    raise ValueError(f'sampler is "{name}", which does not exist; {hint}')


def sampler_of_scheduler(config: Mapping[str, Any]) -> str:
    """Return the sampler that a scheduler_config.json selects by its class and options; ValueError if there is none."""
    scheduler = config.get("_class_name")
    scheduler = _SAME.get(scheduler, scheduler) if isinstance(scheduler, str) else None
    if scheduler in _UNSUPPORTED:
        raise ValueError(f"scheduler class {scheduler} is not supported: {_UNSUPPORTED[scheduler]}")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler class {config.get('_class_name')} is unknown; known are {', '.join(SCHEDULERS)}")
    named = {name: info for name, info in CATALOG.items() if info.scheduler == scheduler}
    for key in next(iter(named.values())).options:
        value = config.get(key)
        value = "dpmsolver++" if value == "deis" else value  # as in diffusers
        known = list(dict.fromkeys(info.options[key] for info in named.values()))
        if value is not None and value not in known:
            raise ValueError(
                f"scheduler {key} {value!r} is not supported by {scheduler}; known: {', '.join(map(str, known))}"
            )
        value = known[0] if value is None else value
        named = {name: info for name, info in named.items() if info.options[key] == value}
    name, info = next(iter(named.items()))
    flags = [SIGMA_SPACINGS[spacing] for spacing in info.spacings if config.get(SIGMA_SPACINGS[spacing])]
    exclusive = [flag for flag in flags if flag != SIGMA_SPACINGS["lu"]]
    if len(exclusive) > 1:
        raise ValueError(f"scheduler {exclusive[0]} True and {exclusive[1]} True exclude each other; give one")
    spacing = next((spacing for spacing in info.spacings if SIGMA_SPACINGS[spacing] in flags), None)
    return name if spacing is None else f"{name}_{spacing}"


def _normalized(name: str) -> str:
    """Return a name without case and punctuation, `+` as p and "ancestral" as a."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p").replace("ancestral", "a"))


@functools.cache
def _spellings() -> dict[str, str]:
    """Return the sampler of every normalized spelling."""
    by_spelling = {_normalized(scheduler): name for name, scheduler in reversed(_first_names())}
    for name, info in CATALOG.items():
        for spelling in (name, *info.aliases):
            by_spelling[_normalized(spelling)] = name
            for spacing in info.spacings:
                by_spelling[_normalized(f"{spelling}_{spacing}")] = f"{name}_{spacing}"
    return by_spelling


def _first_names() -> list[tuple[str, str]]:
    same = [
        (name, other) for other, scheduler in _SAME.items() for name in CATALOG if CATALOG[name].scheduler == scheduler
    ]
    return [*((name, info.scheduler) for name, info in CATALOG.items()), *same]
