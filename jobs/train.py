"""`latentmill train`: make a checkpoint by one of the project's recipes."""

import logging
from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
def train(recipe: str, output: Path, threads: int) -> None:
    """Train RECIPE into the checkpoint folder OUTPUT; the same command goes on after a stop.

    Recipes: shapes-autoencoder, then shapes-diffusion into the same OUTPUT.
    """
    import torch

    from pipeline.training.recipes import RECIPES

    if recipe not in RECIPES:
        raise click.UsageError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    if recipe == "shapes-diffusion" and not (output / "vae" / "config.json").exists():
        raise click.UsageError(f"{output} has no vae; train shapes-autoencoder into it first")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # weights that decay towards zero would else slow CPUs down
    RECIPES[recipe](output)
    click.echo(f"{recipe}: done; see {output}")
