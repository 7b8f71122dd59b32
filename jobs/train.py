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

    Recipes: shapes-autoencoder, then shapes-diffusion into the same OUTPUT; shapes-inpainting turns a copy of what
    they made into a checkpoint for inpainting. upscaler needs the text encoder of shapes-diffusion beside the
    autoencoder of textures-autoencoder. Also shapes-clip and, with the CLIP that it makes,
    shapes-autoencoder-adversarial and shapes-diffusion-frozen-clip; shapes-vq and shapes-diffusion-bert.
    """
    import torch

    from pipeline.training.recipes import MAKERS, RECIPES

    if recipe not in RECIPES:
        raise click.UsageError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    for component in RECIPES[recipe].needs:
        if not (output / component / "config.json").exists():
            raise click.UsageError(f"{output} has no {component}; train {MAKERS[component]} into it first")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # weights that decay towards zero would else slow CPUs down
    RECIPES[recipe].run(output)
    click.echo(f"{recipe}: done; see {output}")
