"""`latentmill inpaint`: repaint the masked area of images."""

from typing import Any

import click

from jobs.generate import run_and_report
from jobs.options import config_of, run_options


@click.command()
@click.argument("manifest")
@click.argument("output")
@run_options("inpaint")
@click.pass_context
def inpaint(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Repaint the masked (white) area of each image of MANIFEST by its prompt, as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them with the columns id, image, mask and, optionally, prompt; OUTPUT is
    a folder; both are local paths or URLs. Pixels outside the mask stay as they are. With a checkpoint made for
    inpainting (a U-Net of 9 channels) the network sees the area around the mask; with any other, the known area is
    restored at every step. A row whose mask is empty is returned unchanged, with num_inference_steps 0. Gray images
    stay gray, alpha is kept (the network sees transparency as white, and what it paints is opaque), and so are color
    profile, resolution and EXIF.

    Exit status: 0, every row succeeded; 1, the run did not finish; 3, it finished and some rows failed.
    """
    return run_and_report(config_of("inpaint", manifest, output, options))
