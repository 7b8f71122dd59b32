"""`latentmill upscale`: upscale images."""

from typing import Any

import click

from jobs.generate import run_and_report
from jobs.options import config_of, run_options


@click.command()
@click.argument("manifest")
@click.argument("output")
@run_options("upscale")
@click.pass_context
def upscale(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Upscale the images of MANIFEST by 4 (or --scale), as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them with the columns id and image, or the OUTPUT of an earlier run,
    whose images are upscaled; both are local paths or URLs. Images may be of any size: large ones are processed in
    overlapping tiles. Grayscale images stay grayscale, alpha is upscaled too, and the color profile, resolution and
    EXIF are preserved.

    Exit status: 0, every row succeeded; 1, the run did not finish; 3, it finished and some rows failed.
    """
    return run_and_report(config_of("upscale", manifest, output, options))
