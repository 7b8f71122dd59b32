"""Captioned images that are encoded to latents once, before training."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from pipeline.models.autoencoder import AutoencoderKL
from pipeline.training.data.examples import Source, stack_pixels
from pipeline.training.loop import Worker
from pipeline.training.save import replacing

log = logging.getLogger(__name__)

ENCODING_BATCH: Final = 50


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The means and standard deviations of the scaled latents of N images (N, C, h, w), and their captions."""

    mean: Tensor
    deviation: Tensor
    captions: list[str]

    def sample(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return latents (B, C, h, w) of the images `indices` (B,), channels last in memory."""
        mean, deviation = self.mean[indices].float(), self.deviation[indices].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        return latents.to(memory_format=torch.channels_last)


def encoded_images(
    source: Source, autoencoder: AutoencoderKL, path: Path, worker: Worker, *, count: int, seed: int, width: int
) -> EncodedImages:
    """Return `count` images of a source (fewer if it has fewer), `width` pixels wide, encoded by an autoencoder.

    The first worker writes them to `path`, unless a previous run has; all workers read that file.
    """
    if not path.exists() and worker.rank == 0:
        count = min(count, source.size or count)
        _encode_images(source, autoencoder.to(worker.device), worker.device, path, count=count, seed=seed, width=width)
    worker.barrier()
    return EncodedImages(**torch.load(path, weights_only=True))


def _encode_images(
    source: Source, autoencoder: AutoencoderKL, device: str, path: Path, *, count: int, seed: int, width: int
) -> None:
    scale, means, deviations, captions = autoencoder.config.scaling_factor, [], [], []
    for start in range(0, count, ENCODING_BATCH):
        examples = source.examples(seed, start, min(ENCODING_BATCH, count - start), width)
        with torch.inference_mode():
            posterior = autoencoder.posterior(stack_pixels(examples).to(device))
        means.append((scale * posterior.mean).half().cpu())
        deviations.append((scale * torch.exp(0.5 * posterior.logvar)).half().cpu())
        captions += [caption for _, caption in examples]
        if start % 5000 == 0:
            log.info("encoded %d of %d images", start, count)
    with replacing(path) as temporary:
        torch.save({"mean": torch.cat(means), "deviation": torch.cat(deviations), "captions": captions}, temporary)
