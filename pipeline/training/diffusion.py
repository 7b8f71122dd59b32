"""The recipe of the denoiser: U-Net and CLIP text encoder together, on the latents of captioned scenes."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint import load_autoencoder
from pipeline.models.unet import UNet, UNetConfig
from pipeline.models.weights import channels_last
from pipeline.training.loop import LoopConfig, train
from pipeline.training.pictures import pixels_of, scenes
from pipeline.training.save import save_component, write_json
from pipeline.training.scenes import vocabulary
from pipeline.training.tokenizer import END, START, save_tokenizer, word_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionRecipe:
    """What to train, on what, and how."""

    unet: UNetConfig
    text_layers: int
    text_heads: int
    window: int
    """Tokens that the text encoder sees at once."""
    scheduler: dict[str, object]
    """What is written to scheduler/scheduler_config.json; its noise schedule is the one trained on."""
    advice: dict[str, object]
    """What is written to generation_config.json: the steps and the guidance that suit the model."""
    pictures: int
    """How many scenes are drawn and encoded, once; the training goes over them again and again."""
    batch: int
    caption_dropout: float = 0.1
    """How often the caption is dropped, for classifier-free guidance (Ho and Salimans 2022)."""
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))


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
    pictures=60_000,
    batch=32,
    seed=2,
    loop=LoopConfig(steps=14_000, learning_rate=8e-4, warmup_steps=200, cooldown=0.3, average_decay=0.998),
)


class Denoiser(nn.Module):
    """The U-Net and the text encoder, as one thing to train."""

    def __init__(self, unet: UNet, text: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text = text

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        states = self.text(tokens).last_hidden_state
        return self.unet(latents, timesteps, states)


@dataclass(frozen=True, slots=True)
class EncodedScenes:
    """Scenes as the denoiser learns them: means and deviations of latents (N, C, h, w), tokens (N, window)."""

    mean: Tensor
    deviation: Tensor
    tokens: Tensor


def velocity_loss(
    denoiser: nn.Module, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor, alphas: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity (Salimans and Ho 2022, appendix D); `alphas` cumulated, (T,)."""
    signal = alphas[timesteps].sqrt()[:, None, None, None]
    deviation = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
    noisy = signal * latents + deviation * noise
    velocity = signal * noise - deviation * latents
    return F.mse_loss(denoiser(noisy, timesteps, tokens), velocity)


def drawn_timesteps(count: int, end: int, draws: torch.Generator) -> Tensor:
    """Timesteps in 0..end-1: half of them anywhere, half by the logit-normal (Esser et al. 2024, section 3.1).

    What a picture holds is decided at middling noise; the ends still must be known, above all the last timestep,
    at which sampling starts.
    """
    even = torch.rand(count, generator=draws)
    middling = torch.sigmoid(0.3 + torch.randn(count, generator=draws))
    parts = torch.where(torch.rand(count, generator=draws) < 0.5, even, middling)
    return (parts * end).long().clamp(max=end - 1)


def train_diffusion(recipe: DiffusionRecipe, output: Path) -> None:
    """Train on `output/vae`'s latents, and complete `output` to a checkpoint folder of the field."""
    torch.manual_seed(recipe.seed)
    tokenizer = word_tokenizer(vocabulary(), recipe.window)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.unet.cross_attention_dim,
        intermediate_size=4 * recipe.unet.cross_attention_dim,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=recipe.text_heads,
        max_position_embeddings=recipe.window,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.get_vocab()[START],
        eos_token_id=tokenizer.get_vocab()[END],
        pad_token_id=tokenizer.get_vocab()[END],
    )
    denoiser = Denoiser(channels_last(UNet(recipe.unet)), CLIPTextModel(text_config))
    data = encoded_scenes(recipe, load_autoencoder(output / "vae"), tokenizer, output / "diffusion")
    alphas = NoiseScheduleConfig.from_dict(recipe.scheduler).alphas_cumprod().float()
    unconditional = torch.tensor(tokenizer("", padding="max_length").input_ids)

    def step_loss(step: int) -> tuple[Tensor, dict]:
        draws = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        chosen = torch.randint(len(data.tokens), (recipe.batch,), generator=draws)
        mean, deviation = data.mean[chosen].float(), data.deviation[chosen].float()
        latents = mean + deviation * torch.randn(mean.shape, generator=draws)
        dropped = torch.rand(recipe.batch, 1, generator=draws) < recipe.caption_dropout
        tokens = torch.where(dropped, unconditional, data.tokens[chosen])
        timesteps = drawn_timesteps(recipe.batch, len(alphas), draws)
        noise = torch.randn(mean.shape, generator=draws)
        latents, noise = (part.to(memory_format=torch.channels_last) for part in (latents, noise))
        return velocity_loss(denoiser, latents, noise, timesteps, tokens, alphas), {}

    average = train(denoiser, step_loss, recipe.loop, output / "diffusion")
    assert isinstance(average, Denoiser)
    save_component(average.unet, recipe.unet, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    average.text.half().save_pretrained(output / "text_encoder")
    save_tokenizer(tokenizer, output / "tokenizer")
    write_json(output / "scheduler" / "scheduler_config.json", recipe.scheduler)
    write_json(output / "generation_config.json", recipe.advice)
    write_json(output / "model_index.json", _model_index(recipe))


def encoded_scenes(
    recipe: DiffusionRecipe, autoencoder: AutoencoderKL, tokenizer: object, folder: Path
) -> EncodedScenes:
    """The recipe's scenes, drawn and encoded; kept in `folder` for the next start."""
    path = folder / "latents.pt"
    if path.exists():
        return EncodedScenes(**torch.load(path, weights_only=True))
    scale, means, deviations, captions = autoencoder.config.scaling_factor, [], [], []
    width = recipe.unet.sample_size * autoencoder.config.downsample_factor
    for start in range(0, recipe.pictures, 50):
        drawn = scenes(recipe.seed, start, min(50, recipe.pictures - start))
        with torch.inference_mode():
            posterior = autoencoder.posterior(pixels_of(drawn, width).to(memory_format=torch.channels_last))
        means.append((scale * posterior.mean).half())
        deviations.append((scale * torch.exp(0.5 * posterior.logvar)).half())
        captions += [scene.caption() for scene in drawn]
        if start % 5000 == 0:
            log.info("encoded %d of %d scenes", start, recipe.pictures)
    tokens = torch.tensor(tokenizer(captions, padding="max_length").input_ids)  # pyright: ignore[reportCallIssue]
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"mean": torch.cat(means), "deviation": torch.cat(deviations), "tokens": tokens}
    torch.save(kept, path)
    return EncodedScenes(**kept)


def _model_index(recipe: DiffusionRecipe) -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", recipe.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
