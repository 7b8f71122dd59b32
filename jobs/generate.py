"""`latentmill generate`: text to image, and image to image."""

import sys
from typing import Any

import click

from jobs.options import (
    PICTURE_OPTIONS,
    ROW_OPTIONS,
    RUN_OPTIONS,
    SCORE_OPTIONS,
    SIZE_OPTIONS,
    STRENGTH_OPTIONS,
    config_of,
    model_options,
    with_options,
)


@click.command()
@click.argument("manifest")
@click.argument("output")
@with_options(
    ROW_OPTIONS, STRENGTH_OPTIONS, SIZE_OPTIONS, model_options("generate"), SCORE_OPTIONS, PICTURE_OPTIONS, RUN_OPTIONS
)
@click.pass_context
def generate(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Make pictures of the rows of MANIFEST, as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them, OUTPUT a folder; both are local paths or URLs (s3://, gs://, ...).
    The same command again makes what is missing. A row's own columns come before the options.

    Exit status: 0, every row is there; 1, the run did not finish; 3, it did, and some rows failed.
    """
    return run_and_report(config_of("generate", manifest, output, options))


def run_and_report(config: Any) -> int:
    """Run a job, say how it ended, and give the exit status."""
    from jobs.cli import EXIT_BAD_ROWS
    from pipeline.run.job import run_job

    summary = run_job(config)
    click.echo(str(summary))
    sys.stdout.flush()
    return EXIT_BAD_ROWS if summary.failed else 0
