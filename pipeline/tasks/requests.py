"""Denoising requests of one model: prompt embeddings, sampler tables, and the noise of a row's seed."""

import functools
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.adapters import AdapterWeight
from pipeline.config import RowDefaults
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.request import Conditioning, DenoisingRequest
from pipeline.diffusion.samplers import SamplerTable, check_sampler, sampler_table
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.errors import CheckpointError
from pipeline.models.layers import guidance_embedding
from pipeline.models.prompts import PromptEmbedding
from pipeline.models.stack import Stack
from pipeline.tasks.rows import RowParameters
from pipeline.tasks.sizes import size_numbers

_CACHE_SIZE: Final = 256


class RequestBuilder:
    """Builds denoising requests; each distinct prompt is encoded once, each distinct table computed once."""

    def __init__(self, stack: Stack, run: RowDefaults) -> None:
        self.schedule = read_schedule(stack.name, stack.schedule_config)
        self._stack, self._run = stack, run
        self._encode = functools.lru_cache(maxsize=_CACHE_SIZE)(self._encode_prompt)
        self._table = functools.lru_cache(maxsize=_CACHE_SIZE)(self._sampler_table)

    def table(self, parameters: RowParameters, strength: float | None) -> SamplerTable:
        """Return the sampler table of a row; `strength` None starts from noise alone."""
        return self._table(parameters.sampler, parameters.num_inference_steps, parameters.eta, strength)

    def image_table(self, parameters: RowParameters) -> SamplerTable:
        """Return the table of text to image, or of image to image if the parameters have a strength.

        A latent consistency model takes all steps from its less noisy timesteps, as its own pipeline in diffusers does;
        other models leave out the first steps."""
        strength, takes_guidance = parameters.strength, self._stack.guidance_width is not None
        is_lcm = takes_guidance and parameters.sampler == "lcm"
        if strength is None or self._stack.size_numbers or not is_lcm:
            return self.table(parameters, strength)
        return self._table(parameters.sampler, parameters.num_inference_steps, parameters.eta, 1.0, strength)

    def build(
        self,
        key: Any,
        parameters: RowParameters,
        table: SamplerTable,
        latents: Tensor,
        generator: torch.Generator,
        *,
        extra_channels: Tensor | None = None,
    ) -> DenoisingRequest:
        """Return a row's request for its first latents (C, h, w); `generator` has drawn all noise so far.

        `extra_channels` (C2, h, w) are the same for both sides of the guidance; with an image scale, they are zero on
        the third."""
        guidance = Guidance(
            scale=parameters.guidance_scale if self._stack.guidance_width is None else 1.0,
            rescale=parameters.guidance_rescale,
            image_scale=parameters.image_guidance_scale,
            interval=self._run.guidance_interval,
        )
        prompts = [parameters.prompt, parameters.negative_prompt, parameters.negative_prompt]
        prompts = prompts[: guidance.sides if guidance.is_on else 1]
        without_image = None if extra_channels is None else torch.zeros_like(extra_channels)
        text, syntax = self._stack.text, self._run.prompt_syntax
        windows = 0 if text is None else max(text.windows(prompt, syntax) for prompt in prompts)
        return DenoisingRequest(
            key=key,
            table=table,
            latents=latents,
            generator=generator,
            conditions=tuple(
                Conditioning(
                    inputs=self._inputs(parameters, prompt, windows, negative=side > 0),
                    extra_channels=without_image if side == 2 else extra_channels,
                )
                for side, prompt in enumerate(prompts)
            ),
            guidance=guidance,
            merged=self._stack.adapters.merged(parameters.loras),
        )

    def _inputs(
        self, parameters: RowParameters, prompt: str | None, windows: int, *, negative: bool
    ) -> dict[str, Tensor]:
        """Return the network's inputs for one side of a row's guidance."""
        clip_skip = 0 if negative else parameters.clip_skip or 0
        embedding = self._encode(prompt, windows, clip_skip, self._stack.adapters.changing_text(parameters.loras))
        inputs = {"encoder_hidden_states": embedding.states, **self._stack.adapters.inputs(parameters.loras)}
        if embedding.pooled is not None:
            inputs["added"] = self._stack.added(embedding.pooled, size_numbers(parameters, negative=negative))
        if (width := self._stack.guidance_width) is not None:
            inputs["guidance_embedding"] = guidance_embedding(torch.tensor([parameters.guidance_scale]), width)[0]
        if parameters.noise_level is not None:
            inputs["class_labels"] = torch.tensor(parameters.noise_level)
        return inputs

    def _encode_prompt(
        self, prompt: str | None, windows: int, clip_skip: int, loras: tuple[AdapterWeight, ...]
    ) -> PromptEmbedding:
        """Return the embedding, which is empty for a U-Net without text."""
        text = self._stack.text
        if text is None:
            return PromptEmbedding(torch.zeros(0, 0), None)
        with self._stack.adapters.on_text(loras):
            return text.encode(prompt, windows=windows, clip_skip=clip_skip, syntax=self._run.prompt_syntax)

    def _sampler_table(
        self, sampler: str, steps: int, eta: float, strength: float | None, distilled_part: float = 1.0
    ) -> SamplerTable:
        return sampler_table(self.schedule, sampler, steps, eta=eta, strength=strength, distilled_part=distilled_part)


def read_schedule(name: str, config: Mapping[str, Any]) -> NoiseScheduleConfig:
    """Return the noise schedule of a checkpoint; CheckpointError if it is not supported."""
    try:
        return NoiseScheduleConfig.from_dict(config)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def check_default_sampler(name: str, schedule: NoiseScheduleConfig, sampler: str) -> None:
    """Raise CheckpointError if the sampler of rows that name none cannot run on the checkpoint's schedule."""
    try:
        check_sampler(schedule, sampler)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}; give another with --sampler") from None


def row_generator(parameters: RowParameters) -> torch.Generator:
    """Return the CPU generator from which all noise of a row is drawn, in the order of diffusers' pipelines."""
    return torch.Generator("cpu").manual_seed(parameters.seed)


def encode_pixels(stack: Stack, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the latents (1, C, h, w) of pixels (1, 3, H, W) in [-1, 1] on the CPU, with the encoder's noise drawn."""
    return stack.encode(pixels, draw_encoder_noise(stack, pixels, generator)).cpu()


def draw_encoder_noise(stack: Stack, pixels: Tensor, generator: torch.Generator) -> Tensor | None:
    """Return the noise (1, C, h, w) of the encoder's Gaussian for pixels (1, 3, H, W); None if it has none."""
    factor = stack.downsample_factor
    shape = (1, stack.latent_channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
    return torch.randn(shape, generator=generator) if stack.encoder_samples else None
