"""`latentmill check`: audit an output."""

import click


@click.command()
@click.argument("output")
@click.option("--manifest", metavar="PATH_OR_URL", help="Check that OUTPUT holds exactly the rows of this manifest.")
@click.option("--repair", is_flag=True, help="Take damaged files out of the ledger.")
def check(output: str, manifest: str | None, repair: bool) -> int:
    """Check that OUTPUT holds every row once, and that every file and image is intact.

    Every file must be readable and in the ledger; every image must decode and match its sha256.

    Exit status: 0, no problem; 1, OUTPUT cannot be read; 3, there are problems.
    """
    from jobs.cli import EXIT_BAD_ROWS
    from pipeline.output.audit import check_output
    from pipeline.output.ledger_repair import repair_output

    audit = check_output(output, manifest)
    click.echo(str(audit))
    if repair and audit.damaged_files:
        repair_output(output, audit.damaged_files)
        count = len(audit.damaged_files)
        click.echo(f"{count:,} damaged files are out of the ledger; run the same command again to make their rows")
    return EXIT_BAD_ROWS if audit.count else 0
