"""`latentmill upscale`: pictures made larger."""

from typing import Any, Final

import click

from jobs.generate import run_and_report
from jobs.options import PICTURE_OPTIONS, ROW_OPTIONS, RUN_OPTIONS, config_of, model_options, with_options
from pipeline.config import SCALES

UPSCALE_OPTIONS: Final = (
    click.option("--noise-level", type=click.IntRange(0, 1000), metavar="N", help="Noise on what the model is shown."),
    click.option(
        "--tile",
        type=click.IntRange(8, 1024),
        metavar="PIXELS",
        help="How much of a source's side is worked on at once. [default: the model's]",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(0, 512),
        metavar="PIXELS",
        help="What neighboring tiles share of the source. [default: a quarter of the tile]",
    ),
    click.option(
        "--scale",
        type=click.Choice([str(scale) for scale in SCALES]),
        default="4",
        show_default=True,
        callback=lambda context, parameter, value: int(value),
        help="2 is 4, halved; 8 is 4 of the source enlarged twice.",
    ),
    click.option(
        "--store",
        type=click.Choice(["parquet", "files"]),
        default="parquet",
        show_default=True,
        help="Where the pictures are: in the Parquet, or beside it in files as the sources' lay.",
    ),
    click.option(
        "--correct-colors/--no-correct-colors",
        default=None,
        help="Draw colors and low frequencies back to the source's, and smooth what the networks add but noise to. "
        "[default: the model's, else no]",
    ),
)


@click.command()
@click.argument("manifest")
@click.argument("output")
@with_options(ROW_OPTIONS, UPSCALE_OPTIONS, model_options("upscale"), PICTURE_OPTIONS, RUN_OPTIONS)
@click.pass_context
def upscale(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Make pictures four times as wide and high (or --scale), as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them with the columns id and image, or the OUTPUT of an earlier run,
    whose pictures are taken up; both are local paths or URLs. Pictures may be of any size: large ones are worked on in
    tiles that overlap. Gray stays gray, alpha is enlarged beside the colors, and color profile, resolution and EXIF
    are kept.

    Exit status: 0, every row is there; 1, the run did not finish; 3, it did, and some rows failed.
    """
    return run_and_report(config_of("upscale", manifest, output, options))
