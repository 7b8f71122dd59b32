"""The inputs of a sampler."""

from dataclasses import dataclass

from pipeline.diffusion.schedule import NoiseScheduleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerRequest:
    """The inputs of a sampler; `strength` is None for text to image."""

    schedule: NoiseScheduleConfig
    steps: int
    eta: float = 0.0
    strength: float | None = None
    spacing: str | None = None
    """The spacing of the noise levels, one of SIGMA_SPACINGS in `catalog.py`; None is the timesteps' own."""

    distilled_part: float = 1.0
    """A consistency model's steps are among this part of its distilled timesteps, from the least noisy."""

    @property
    def first(self) -> int:
        """The index of the first step that runs: image to image skips the noisiest part (Meng et al. 2022)."""
        if self.strength is None:
            return 0
        return self.steps - min(int(self.steps * self.strength), self.steps)
