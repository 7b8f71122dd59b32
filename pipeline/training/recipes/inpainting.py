"""The recipe of inpainting: a text-to-image checkpoint learns to recover removed parts of pictures.

As Stable Diffusion's: the U-Net gets the mask and the masked picture's latents as further input channels, which start
with no weight (Rombach et al. 2022, section 4.5 and appendix E.2.2).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_text_encoder, load_unet
from pipeline.models.checkpoint.weights import channels_last, read_json
from pipeline.models.unet import UNet
from pipeline.training.data.examples import pixels_of, scenes
from pipeline.training.data.scenes import Scene, Thing, draw
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, draws_of, train
from pipeline.training.losses import denoising_errors
from pipeline.training.recipes.diffusion import Denoiser, drawn_timesteps
from pipeline.training.save import save_component, write_model_index


@dataclass(frozen=True, kw_only=True, slots=True)
class InpaintingRecipe:
    """How to train further what stands in the checkpoint folder."""

    batch: int
    erased: float = 0.4
    """How often a masked thing is not to come back: the picture is the scene without it, and nothing is said."""
    caption_dropout: float = 0.1
    """How often nothing is said though things are to come back: those of which strokes and rectangles leave a part.
    A whole thing never is, or else nothing said would mean that something may be there."""
    seed: int
    loop: LoopConfig


SHAPES_INPAINTING: Final = InpaintingRecipe(
    batch=32,
    seed=3,
    loop=LoopConfig(steps=2_000, learning_rate=1e-3, warmup_steps=50, cooldown=0.5, average_decay=0.99),
)


@dataclass(frozen=True, slots=True)
class Removal:
    """A scene to recover, what is said of it, and its mask (H, W), white where the picture was removed."""

    scene: Scene
    caption: str
    mask: Image.Image


def removal(scene: Scene, random: Random, width: int, recipe: InpaintingRecipe) -> Removal:
    """A whole thing, brush strokes or rectangles of a scene's picture, removed at random."""
    mask = Image.new("L", (width, width))
    canvas = ImageDraw.Draw(mask)
    kind = random.choices(("thing", "strokes", "rectangles"), (0.6, 0.2, 0.2))[0]
    if kind == "thing":
        thing = random.choice(scene.things)
        _cover(canvas, thing, random, width)
        if random.random() < recipe.erased:
            rest = tuple(other for other in scene.things if other is not thing)
            return Removal(replace(scene, things=rest), "", mask)
        return Removal(scene, scene.caption(), mask)
    if kind == "strokes":
        for _ in range(random.randint(1, 4)):
            points = [(random.random() * width, random.random() * width) for _ in range(random.randint(2, 4))]
            canvas.line(points, fill=255, width=round(random.uniform(0.06, 0.16) * width), joint="curve")
    else:
        for _ in range(random.randint(1, 2)):
            x, y = random.random(), random.random()
            across, down = random.uniform(0.2, 0.7), random.uniform(0.2, 0.7)
            canvas.rectangle(
                [(edge * width) for edge in (x - across / 2, y - down / 2, x + across / 2, y + down / 2)], 255
            )
    caption = "" if random.random() < recipe.caption_dropout else scene.caption()
    return Removal(scene, caption, mask)


def train_inpainting(recipe: InpaintingRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Turn `output`, a text-to-image checkpoint, into one for inpainting; autoencoder and texts stay as they are.

    State and log stand in `output/inpainting`.
    """
    torch.manual_seed(recipe.seed)
    autoencoder = channels_last(load_autoencoder(output / "vae").to(worker.device))
    text = load_text_encoder(output / "text_encoder", output / "tokenizer")
    unet = channels_last(widened(load_unet(output / "unet"), autoencoder.config.latent_channels))
    denoiser = Denoiser(unet, text.model)
    schedule = read_json(output / "scheduler" / "scheduler_config.json")
    alphas = NoiseScheduleConfig.from_dict(schedule).alphas_cumprod().float().to(worker.device)
    width = unet.config.sample_size * autoencoder.config.downsample_factor

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draws, random = draws_of(recipe.seed, step), Random(f"{recipe.seed}/{step}")
        wanted = scenes(recipe.seed, step * recipe.batch, recipe.batch)
        removals = [removal(scene, random, width, recipe) for scene in wanted]
        latents, shown = shown_latents(removals, width, autoencoder, draws)
        tokens = torch.tensor([text.token_ids(removal.caption)[0] for removal in removals])
        timesteps = drawn_timesteps(recipe.batch, len(alphas), draws)
        noise = torch.randn(latents.shape, generator=draws)
        latents, shown, tokens, timesteps, noise = (
            worker.part(part) for part in (latents, shown, tokens, timesteps, noise)
        )

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            seen = torch.cat([noisy, shown], dim=1)
            return denoiser(seen.to(memory_format=torch.channels_last), timesteps, tokens)

        kind = str(schedule["prediction_type"])
        errors = denoising_errors(network, latents, noise, timesteps, alphas, kind)
        hole = shown[:, :1]
        return errors.mean(), {"loss_in_holes": ((errors.mean(1, keepdim=True) * hole).sum() / hole.sum()).item()}

    average = train(denoiser, step_loss, recipe.loop, output / "inpainting", worker).cpu()
    assert isinstance(average, Denoiser)
    if worker.rank:
        return
    save_component(average.unet, unet.config, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    index = read_json(output / "model_index.json") | {"_class_name": "StableDiffusionInpaintPipeline"}
    write_model_index(output, index)


@torch.no_grad()
def shown_latents(
    removals: list[Removal], width: int, autoencoder: AutoencoderKL, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The pictures' latents (B, C, h, w), and what the U-Net is shown beside them: mask and masked latents."""
    pixels = pixels_of([draw(removal.scene, width) for removal in removals])
    masks = torch.from_numpy(np.stack([np.asarray(removal.mask) for removal in removals]))[:, None].float() / 255
    both = torch.cat([pixels, pixels * (masks < 0.5)]).to(memory_format=torch.channels_last)
    shape = (len(both), autoencoder.config.latent_channels, *(width // autoencoder.config.downsample_factor,) * 2)
    device = autoencoder.encoder.conv_in.weight.device
    noise = torch.randn(shape, generator=draws)
    latents, masked = autoencoder.encode(both.to(device), noise.to(device)).cpu().chunk(2)
    return latents, torch.cat([F.interpolate(masks, latents.shape[2:]), masked], dim=1)


def widened(unet: UNet, latent_channels: int) -> UNet:
    """The U-Net with input channels for a mask and a masked picture's latents, which have no weight yet."""
    if unet.config.in_channels != latent_channels:
        return unet.requires_grad_(True)  # an inpainting checkpoint already
    wider = UNet(replace(unet.config, in_channels=2 * latent_channels + 1))
    weights = unet.state_dict()
    first = torch.zeros_like(wider.conv_in.weight)
    first[:, :latent_channels] = weights["conv_in.weight"]
    wider.load_state_dict(weights | {"conv_in.weight": first})
    return wider


def _cover(canvas: ImageDraw.ImageDraw, thing: Thing, random: Random, width: int) -> None:
    """A box or an ellipse over a whole thing, with some of what is around it."""
    reach = [1.12 * thing.radius + random.uniform(0.02, 0.12) for _ in range(4)]
    box = (thing.x - reach[0], thing.y - reach[1], thing.x + reach[2], thing.y + reach[3])
    corners = [edge * width for edge in box]
    if random.random() < 0.6:
        canvas.rectangle(corners, fill=255)
    else:
        middle, wide = [(corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2], 0.71
        across, down = wide * (corners[2] - corners[0]), wide * (corners[3] - corners[1])
        canvas.ellipse((middle[0] - across, middle[1] - down, middle[0] + across, middle[1] + down), fill=255)
