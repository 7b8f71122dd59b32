"""`latentmill inpaint`: the masked part of pictures made anew."""

from typing import Any, Final

import click

from jobs.generate import run_and_report
from jobs.options import (
    PICTURE_OPTIONS,
    ROW_OPTIONS,
    RUN_OPTIONS,
    SCORE_OPTIONS,
    STRENGTH_OPTIONS,
    config_of,
    model_options,
    with_options,
)

MASK_OPTIONS: Final = (
    click.option("--mask-invert", is_flag=True, help="Black is repainted, not white."),
    click.option(
        "--mask-dilate",
        type=click.IntRange(0, 512),
        default=0,
        show_default=True,
        metavar="PIXELS",
        help="Repaint so much around the mask too.",
    ),
    click.option(
        "--mask-feather",
        type=click.IntRange(0, 512),
        default=0,
        show_default=True,
        metavar="PIXELS",
        help="Blend into the picture over so much around that.",
    ),
)


@click.command()
@click.argument("manifest")
@click.argument("output")
@with_options(
    ROW_OPTIONS, STRENGTH_OPTIONS, MASK_OPTIONS, model_options("inpaint"), SCORE_OPTIONS, PICTURE_OPTIONS, RUN_OPTIONS
)
@click.pass_context
def inpaint(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Make the white part of each row's mask anew, as its prompt says, and leave every other pixel as it is.

    MANIFEST is a Parquet file or a folder of them with the columns id, image, mask and, if wanted, prompt; OUTPUT is a
    folder; both are local paths or URLs. With a checkpoint made for inpainting (a U-Net of 9 channels) the network
    sees what is around the hole; with any other, what is known is put back at every step. A row whose mask is empty
    comes back as it came, with num_inference_steps 0.

    Exit status: 0, every row is there; 1, the run did not finish; 3, it did, and some rows failed.
    """
    return run_and_report(config_of("inpaint", manifest, output, options))
