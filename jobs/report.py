"""`latentmill report`: write the report of a run."""

import click


@click.command()
@click.argument("output")
def report(output: str) -> None:
    """Write a gallery, figures and failures of a run to OUTPUT/report."""
    from pipeline.report.write import write_report

    click.echo(f"The report is in {write_report(output)}")
