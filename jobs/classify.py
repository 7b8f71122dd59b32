"""`latentmill classify`: find the label that fits each image best."""

from typing import Any

import click

from jobs.generate import run_and_report
from jobs.options import config_of, run_options


@click.command()
@click.argument("manifest")
@click.argument("output")
@run_options("classify")
@click.pass_context
def classify(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Find the label that fits each image of MANIFEST best, as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them with the columns id and image, or the OUTPUT of an earlier run,
    whose images are classified; both are local paths or URLs. The model is a CLIP, and labels are any texts. OUTPUT
    has each row's label and its probability, the probabilities of all labels in their order, and the other columns of
    the manifest.

    Exit status: 0, every row succeeded; 1, the run did not finish; 3, it finished and some rows failed.
    """
    return run_and_report(config_of("classify", manifest, output, options))
