"""`latentmill convert`: a single-file checkpoint as a folder in diffusers' layout."""

from pathlib import Path

import click

from pipeline.errors import RunError


@click.command()
@click.argument("file")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="PATH", help="The folder of another tokenizer than CLIP's."
)
@click.option(
    "--prediction-type",
    type=click.Choice(["epsilon", "v_prediction", "sample"]),
    help="What the network predicts, where the file does not say it; a 768-pixel Stable Diffusion 2 predicts v.",
)
@click.option("--zero-terminal-snr/--no-zero-terminal-snr", default=None, help="Whether the last step is pure noise.")
def convert(
    file: str, folder: Path, tokenizer: Path | None, prediction_type: str | None, zero_terminal_snr: bool | None
) -> int:
    """Write the single-file checkpoint FILE (.safetensors) to FOLDER in diffusers' layout.

    Stable Diffusion 1, 2 and XL, their inpainting forms, SDXL's refiner and the x4 upscaler. Runs take such files as
    they are; convert one to keep the result, or to state what the file does not say.
    """
    from pipeline.inference.node_cache import local_file
    from pipeline.models.checkpoint.convert import convert_single_file
    from pipeline.models.checkpoint.identify import check_file_kind
    from pipeline.models.checkpoint.single_file import SingleFileOptions

    path = local_file(file)
    if path.is_dir():
        raise RunError(f"{file}: is a folder; a checkpoint folder needs no conversion")
    if not path.is_file():
        raise RunError(f"{file}: no such file; give a .safetensors file")
    check_file_kind(file)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"{folder}: exists and is not empty; give a new folder")
    options = SingleFileOptions(
        tokenizer=tokenizer, prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr
    )
    converted = convert_single_file(path, folder, options)
    if converted.is_guess:
        click.echo(
            f"{file} does not say what its network predicts; epsilon is taken. If it is a 768-pixel model, convert it "
            "with --prediction-type v_prediction."
        )
    click.echo(f"{folder} is a checkpoint folder; give it as --model {folder}")
    return 0
