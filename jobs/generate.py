"""`latentmill generate`: text to image, and image to image."""

import sys
from typing import Any

import click

from jobs.options import config_of, run_options
from pipeline.config import RunConfig


@click.command()
@click.argument("manifest")
@click.argument("output")
@run_options("generate")
@click.pass_context
def generate(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Generate the images of the rows of MANIFEST, as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them, OUTPUT is a folder; both are local paths or URLs (s3://, gs://,
    ...). A row's own columns take precedence over the options. Run the same command again to complete the missing
    rows.

    Exit status: 0, every row succeeded; 1, the run did not finish; 3, it finished and some rows failed.
    """
    return run_and_report(config_of("generate", manifest, output, options))


def run_and_report(config: RunConfig) -> int:
    """Run a job, print its summary, and return the exit status."""
    from jobs.cli import EXIT_BAD_ROWS
    from pipeline.run.job import run_job

    summary = run_job(config)
    click.echo(str(summary))
    sys.stdout.flush()
    return EXIT_BAD_ROWS if summary.failed else 0
