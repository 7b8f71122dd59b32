"""`latentmill train`: make a checkpoint by one of the project's recipes."""

import logging
from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", metavar="URL", help="Train on this table instead: Parquet with the columns image and prompt.")
@click.option("--steps", type=click.IntRange(1), help="How long, instead of the recipe's own steps.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on a Ray cluster.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads a worker.")
def train(
    recipe: str, output: Path, data: str | None, steps: int | None, workers: int, device: str, threads: int
) -> None:
    """Train RECIPE into the checkpoint folder OUTPUT; the same command goes on after a stop.

    Recipes: shapes-autoencoder, then shapes-diffusion into the same OUTPUT; shapes-inpainting turns a copy of what
    they made into a checkpoint for inpainting. upscaler comes after textures-autoencoder, into the same OUTPUT, with
    text_encoder and tokenizer of shapes-diffusion in it. With the CLIP that shapes-clip makes: shapes-decoder trains
    an autoencoder's decoder on, shapes-autoencoder-adversarial a whole one, shapes-diffusion-frozen-clip holds CLIP's
    text tower still and shapes-diffusion-clip then lets it learn. Also shapes-vq and shapes-diffusion-bert.

    With several workers each takes its part of every batch, so the losses are those of one; OUTPUT must be a folder
    that all of them see.
    """
    from pipeline.training.ray_train import DataError, TrainConfig, run_training
    from pipeline.training.recipes.catalog import RECIPES

    if recipe not in RECIPES:
        raise click.UsageError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    for component, maker in RECIPES[recipe].needs.items():
        if not (output / component / "config.json").exists():
            raise click.UsageError(f"{output} has no {component}; train {maker} into it first")
    if data is not None and not RECIPES[recipe].takes_data:
        raise click.UsageError(f"{recipe} has no --data: it makes its pictures from scenes that it knows")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = TrainConfig(
        recipe=recipe, output=output, data=data, workers=workers, device=device, threads=threads, steps=steps
    )
    try:
        run_training(config)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{recipe}: done; see {output}")
