"""`latentmill check`: whether an output is whole."""

import click


@click.command()
@click.argument("output")
@click.option("--manifest", metavar="PATH_OR_URL", help="Whose rows should all be there, and no others.")
def check(output: str, manifest: str | None) -> int:
    """Audit OUTPUT: every row once, every file readable, every picture decodes and has its sha256, no orphans.

    Exit status: 0, all is well; 1, nothing could be read; 3, something is wrong.
    """
    from jobs.cli import EXIT_BAD_ROWS
    from pipeline.output.audit import check_output

    audit = check_output(output, manifest)
    click.echo(str(audit))
    return EXIT_BAD_ROWS if audit.count else 0
