"""The reconstruction quality of autoencoders on held-out images.

`python -m tests.benchmarks.score_autoencoder FOLDER ...`, each FOLDER a `vae` or a `vqvae`, prints PSNR in dB and SSIM
(Wang et al. 2004) of 8-bit images, the perceptual distance in the features of the embedded CLIP's image encoder, and
the number of codes in use if there is a codebook.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_vq
from pipeline.models.configs import EMBEDDED
from pipeline.training.data.examples import SCENES, TEXTURES, stack_pixels
from pipeline.training.image_features import load_image_features
from pipeline.training.losses import perceptual_distance
from tests.benchmarks.attributes import HELD_OUT, psnr

_WINDOW, _DEVIATION = 11, 1.5


def ssim(levels: Tensor, reference: Tensor) -> float:
    """Return the mean structural similarity of levels (B, 3, H, W) of 0 to 255 (Wang et al. 2004, equation 13)."""
    offsets = torch.arange(_WINDOW) - _WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * _DEVIATION**2))
    kernel = torch.outer(window, window)[None, None] / window.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], kernel)

    first, second = mean(levels), mean(reference)
    variances = mean(levels**2) - first**2 + mean(reference**2) - second**2
    covariance = mean(levels * reference) - first * second
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * first * second + c1) * (2 * covariance + c2)
    return float((numerator / ((first**2 + second**2 + c1) * (variances + c2))).mean())


@torch.inference_mode()
def score(folder: Path, pixels: Tensor) -> str:
    """Return the line of the table for the autoencoder in `folder`."""
    quantized = json.loads((folder / "config.json").read_text())["_class_name"] == "VQModel"
    autoencoder = (load_vq if quantized else load_autoencoder)(folder)
    latents = [autoencoder.encode(part) for part in pixels.split(16)]
    decoded = torch.cat([autoencoder.decode(part) for part in latents]).clamp(-1, 1)
    levels, reference = ((255 * (values / 2 + 0.5)).round() for values in (decoded, pixels))
    features = load_image_features(EMBEDDED / "shapes-clip")
    pairs = zip(decoded.split(32), pixels.split(32), strict=True)
    distance = torch.cat([perceptual_distance(features(one), features(other)) for one, other in pairs]).mean()
    result = (
        f"{psnr(float((levels - reference).square().mean())):6.1f} dB {ssim(levels, reference):7.4f} {distance:11.5f}"
    )
    if isinstance(autoencoder, AutoencoderKL):
        return f"{result}   KL, {autoencoder.config.latent_channels} channels"
    codes = torch.cat([autoencoder.quantize.nearest(part).flatten() for part in latents])
    counts = torch.bincount(codes, minlength=autoencoder.config.num_vq_embeddings)
    shares = counts[counts > 0] / counts.sum()
    perplexity = torch.exp(-(shares * shares.log()).sum())
    return f"{result}   VQ, {int((counts > 0).sum())} of {len(counts)} codes used, perplexity {perplexity:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[EMBEDDED / "shapes" / "vae"])
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--textures", action="store_true", help="score textures instead of scenes")
    options = parser.parse_args()
    pixels = stack_pixels((TEXTURES if options.textures else SCENES).examples(HELD_OUT, 0, options.count, 64))
    print(f"{'PSNR':>9} {'SSIM':>7} {'perceptual':>11}   of {options.count} held-out images")
    for folder in options.folders:
        print(f"{score(folder, pixels)}   {folder}", flush=True)


if __name__ == "__main__":
    main()
