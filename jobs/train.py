"""`latentmill train`: train a checkpoint by a recipe."""

import logging
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("recipe")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--data",
    metavar="URL",
    help="Train on this Parquet table with the columns image and prompt instead of drawn scenes.",
)
@click.option("--model", metavar="MODEL", help="lcm, lora: the checkpoint to start from. [default: shapes]")
@click.option("--style", metavar="NAME", help="lora: outlined, blueprint or neon scenes. [default: outlined]")
@click.option("--rank", type=click.IntRange(1), help="lora: the rank. [default: 8]")
@click.option(
    "--alpha", type=click.FloatRange(0, min_open=True), help="lora: its scale times rank. [default: the rank]"
)
@click.option("--steps", type=click.IntRange(1), help="Training steps. [default: the recipe's]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes on Ray.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads per worker.")
def train(recipe: str, output: Path, **options: Any) -> None:
    """Train the checkpoint of RECIPE in the folder OUTPUT. Run the same command again to continue after a stop.

    \b
    shapes-autoencoder              the autoencoder of the shapes checkpoint
    shapes-diffusion                its text encoder and U-Net; after shapes-autoencoder, in the same OUTPUT
    shapes-inpainting               turns a copy of that checkpoint into one for inpainting
    shapes-clip                     a CLIP, which the next four recipes need
    shapes-decoder                  trains the decoder of an autoencoder further
    shapes-autoencoder-adversarial  an autoencoder with a discriminator
    shapes-diffusion-frozen-clip    a U-Net with CLIP's text encoder, frozen
    shapes-diffusion-clip           trains that text encoder too; after shapes-diffusion-frozen-clip
    shapes-vq, shapes-diffusion-bert
    textures-autoencoder            the autoencoder of the upscaler
    upscaler                        its U-Net; needs text_encoder and tokenizer of shapes-diffusion in OUTPUT
    lcm                             distills MODEL to a few steps; OUTPUT becomes a checkpoint
    lora                            teaches MODEL a style, or what the images of --data show; OUTPUT becomes a LoRA

    With several workers, each processes a part of every batch, so the losses are those of one worker; OUTPUT must be a
    folder that all workers share.
    """
    from pipeline.training.config import TrainConfig
    from pipeline.training.ray_train import DataError, run_training

    _check_recipe(recipe, output)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        run_training(TrainConfig(recipe=recipe, output=output, **options))
    except DataError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{recipe} is trained: {output}")


def _check_recipe(recipe: str, output: Path) -> None:
    """Raise a UsageError if the recipe does not exist, or if OUTPUT lacks a component that it needs."""
    from pipeline.training.recipes.catalog import RECIPES

    if recipe not in RECIPES:
        raise click.UsageError(f"recipe {recipe!r} does not exist; choose one of: {', '.join(RECIPES)}")
    for component, maker in RECIPES[recipe].needs.items():
        if not (output / component / "config.json").exists():
            raise click.UsageError(f"{output} has no {component}; train {maker} into it first")
