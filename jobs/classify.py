"""`latentmill classify`: which of some labels each picture fits best."""

from typing import Any, Final

import click

from jobs.generate import run_and_report
from jobs.options import RUN_OPTIONS, config_of, model_options, with_options

LABEL_OPTIONS: Final = (
    click.option(
        "--label", "labels", multiple=True, required=True, metavar="TEXT", help="One of them; to be repeated."
    ),
    click.option(
        "--template",
        default="{}",
        show_default=True,
        metavar="TEXT",
        help="What a label stands in for {}, such as 'a photo of a {}'.",
    ),
)


@click.command()
@click.argument("manifest")
@click.argument("output")
@with_options(LABEL_OPTIONS, model_options("classify"), RUN_OPTIONS)
@click.pass_context
def classify(context: click.Context, manifest: str, output: str, **options: Any) -> int:
    """Say which of the labels each picture of MANIFEST fits best, as Parquet in OUTPUT.

    MANIFEST is a Parquet file or a folder of them with the columns id and image, or the OUTPUT of an earlier run,
    whose pictures are taken up; both are local paths or URLs. The model is a CLIP, and labels are any texts. OUTPUT has
    each row's label, its probability among the labels, those of all of them in their order, and the manifest's other
    columns.

    Exit status: 0, every row is there; 1, the run did not finish; 3, it did, and some rows failed.
    """
    return run_and_report(config_of("classify", manifest, output, options))
