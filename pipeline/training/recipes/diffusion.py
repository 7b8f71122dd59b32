"""The recipe of the denoiser: U-Net and CLIP text encoder together, on the latents of captioned scenes."""

import logging
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_unet
from pipeline.models.checkpoint.weights import channels_last
from pipeline.models.unet import UNet, UNetConfig
from pipeline.training.conditioning import Kind, kept_text_model, text_model
from pipeline.training.data.examples import SCENES, Source, pixels_of
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, draws_of, train
from pipeline.training.losses import denoising_errors, min_snr_weights
from pipeline.training.save import save_component, write_json, write_model_index

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionRecipe:
    """What to train, on what, and how."""

    unet: UNetConfig
    conditioning: Kind = "clip"
    tunes: bool = False
    """Train the U-Net and the CLIP text encoder that stand in the output further, instead of new ones."""
    text_layers: int
    text_heads: int
    window: int
    """Tokens that the text encoder sees at once."""
    scheduler: dict[str, object]
    """What is written to scheduler/scheduler_config.json; its noise schedule is the one trained on."""
    advice: dict[str, object]
    """What is written to generation_config.json: the steps and the guidance that suit the model."""
    source: Source = SCENES
    width: int
    """Pixels of a training picture's side."""
    pictures: int
    """How many are drawn and encoded, once (all, where fewer differ); the training goes over them again and again."""
    batch: int
    caption_dropout: float = 0.1
    """How often the caption is dropped, for classifier-free guidance (Ho and Salimans 2022)."""
    min_snr_gamma: float | None = None
    """Where the weight of little noise is bounded (Hang et al. 2023); None weighs all timesteps alike."""
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))

    @property
    def prediction_type(self) -> str:
        """What the network says of its noisy latents: as its scheduler's config has it."""
        return str(self.scheduler["prediction_type"])


SHAPES_DIFFUSION = DiffusionRecipe(
    unet=UNetConfig(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=128,
        norm_num_groups=16,
    ),
    text_layers=2,
    text_heads=4,
    window=32,
    scheduler={
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    advice={"num_inference_steps": 20, "guidance_scale": 4.0},
    width=64,
    pictures=60_000,
    batch=32,
    seed=2,
    loop=LoopConfig(steps=3_800, learning_rate=2e-3, warmup_steps=100, cooldown=0.27, average_decay=0.998),
)
SHAPES_DIFFUSION_FROZEN_CLIP = replace(SHAPES_DIFFUSION, conditioning="frozen-clip")
SHAPES_DIFFUSION_CLIP = replace(
    SHAPES_DIFFUSION,
    tunes=True,
    seed=7,
    loop=LoopConfig(steps=2_000, learning_rate=1e-3, warmup_steps=100, cooldown=0.6, average_decay=0.998),
)
"""What SHAPES_DIFFUSION_FROZEN_CLIP made, the tower held still no longer."""
SHAPES_DIFFUSION_BERT = replace(SHAPES_DIFFUSION, conditioning="bert")


class Denoiser(nn.Module):
    """The U-Net and the text encoder, as one thing to train."""

    def __init__(self, unet: UNet, text: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text = text

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        states = self.text(tokens).last_hidden_state
        return self.unet(latents, timesteps, states)


@dataclass(frozen=True, slots=True)
class EncodedPictures:
    """Pictures as the denoiser learns them: means and deviations of latents (N, C, h, w), and N captions."""

    mean: Tensor
    deviation: Tensor
    captions: list[str]


def denoising_loss(
    denoiser: nn.Module,
    latents: Tensor,
    noise: Tensor,
    tokens: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    recipe: DiffusionRecipe,
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of the prediction, weighted as the recipe says, and what it is by noise level.

    Latents and noise (B, C, h, w), tokens (B, window), timesteps (B,), `alphas` cumulated, (T,).
    """
    kind = recipe.prediction_type
    errors = denoising_errors(lambda *noisy: denoiser(*noisy, tokens), latents, noise, timesteps, alphas, kind)
    errors = errors.flatten(1).mean(1)
    thirds = timesteps * 3 // len(alphas)
    figures = {
        f"loss_{name}_noise": errors[thirds == third].mean().item()
        for third, name in enumerate(("little", "middling", "much"))
        if (thirds == third).any()
    }
    if recipe.min_snr_gamma is not None:
        errors = errors * min_snr_weights(alphas[timesteps], recipe.min_snr_gamma, kind)
    return errors.mean(), figures


def drawn_timesteps(count: int, end: int, draws: torch.Generator) -> Tensor:
    """Timesteps in 0..end-1: half of them anywhere, half by the logit-normal (Esser et al. 2024, section 3.1).

    What a picture holds is decided at middling noise; the ends still must be known, above all the last timestep,
    at which sampling starts.
    """
    even = torch.rand(count, generator=draws)
    middling = torch.sigmoid(0.3 + torch.randn(count, generator=draws))
    parts = torch.where(torch.rand(count, generator=draws) < 0.5, even, middling)
    return (parts * end).long().clamp(max=end - 1)


def train_diffusion(recipe: DiffusionRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train on `output/vae`'s latents, and complete `output` to a checkpoint folder of the field.

    State and log stand in `output/diffusion`, or `output/tuning` of a recipe that tunes.
    """
    torch.manual_seed(recipe.seed)
    folder = output / ("tuning" if recipe.tunes else "diffusion")
    if recipe.tunes:
        unet, text = load_unet(output / "unet").requires_grad_(True), kept_text_model(output)
    else:
        unet = UNet(recipe.unet)
        text = text_model(
            recipe.conditioning,
            recipe.source.words(),
            output,
            width=recipe.unet.cross_attention_dim,
            window=recipe.window,
            layers=recipe.text_layers,
            heads=recipe.text_heads,
        )
    denoiser = Denoiser(channels_last(unet), text.network)
    data = encoded_pictures(recipe, output / "vae", folder, worker)
    tokens_of_all, unconditional = text.tokens(data.captions), text.tokens([""])
    alphas = NoiseScheduleConfig.from_dict(recipe.scheduler).alphas_cumprod().float().to(worker.device)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draws = draws_of(recipe.seed, step)
        chosen = torch.randint(len(tokens_of_all), (recipe.batch,), generator=draws)
        mean, deviation = data.mean[chosen].float(), data.deviation[chosen].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=draws)
        dropped = torch.rand(recipe.batch, 1, generator=draws) < recipe.caption_dropout
        tokens = torch.where(dropped, unconditional, tokens_of_all[chosen])
        timesteps = drawn_timesteps(recipe.batch, len(alphas), draws)
        noise = torch.randn(mean.shape, generator=draws)
        latents, noise = (part.to(memory_format=torch.channels_last) for part in (latents, noise))
        latents, noise, tokens, timesteps = (worker.part(part) for part in (latents, noise, tokens, timesteps))
        return denoising_loss(denoiser, latents, noise, tokens, timesteps, alphas, recipe)

    average = train(denoiser, step_loss, recipe.loop, folder, worker).cpu()
    assert isinstance(average, Denoiser)
    if worker.rank:
        return
    save_component(average.unet, unet.config, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    described = text.save(average.text, output)
    write_json(output / "scheduler" / "scheduler_config.json", recipe.scheduler)
    write_json(output / "generation_config.json", recipe.advice)
    if "bert" in described:
        shutil.copytree(output / "vae", output / "vqvae", dirs_exist_ok=True)
    write_model_index(output, _model_index(recipe, described))


def encoded_pictures(recipe: DiffusionRecipe, vae: Path, folder: Path, worker: Worker) -> EncodedPictures:
    """The recipe's pictures, encoded by the autoencoder `vae`; kept in `folder` for the next start."""
    path = folder / "latents.pt"
    if not path.exists() and worker.rank == 0:
        _encode_pictures(recipe, load_autoencoder(vae).to(worker.device), worker.device, path)
    worker.wait()
    return EncodedPictures(**torch.load(path, weights_only=True))


def _encode_pictures(recipe: DiffusionRecipe, autoencoder: AutoencoderKL, device: str, path: Path) -> None:
    scale, means, deviations, captions = autoencoder.config.scaling_factor, [], [], []
    count = min(recipe.pictures, recipe.source.size or recipe.pictures)
    for start in range(0, count, 50):
        drawn = recipe.source.examples(recipe.seed, start, min(50, count - start), recipe.width)
        with torch.inference_mode():
            posterior = autoencoder.posterior(pixels_of(drawn).to(device))
        means.append((scale * posterior.mean).half().cpu())
        deviations.append((scale * torch.exp(0.5 * posterior.logvar)).half().cpu())
        captions += [caption for _, caption in drawn]
        if start % 5000 == 0:
            log.info("encoded %d of %d pictures", start, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"mean": torch.cat(means), "deviation": torch.cat(deviations), "captions": captions}, path)


def _model_index(recipe: DiffusionRecipe, text: dict[str, list[str]]) -> dict[str, object]:
    shared = {
        **text,
        "scheduler": ["diffusers", recipe.scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if "bert" in text:
        return {"_class_name": "LDMTextToImagePipeline", **shared, "vqvae": ["diffusers", "AutoencoderKL"]}
    nothing = {"feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    return {"_class_name": "StableDiffusionPipeline", **shared, **nothing, "vae": ["diffusers", "AutoencoderKL"]}
