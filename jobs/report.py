"""`latentmill report`: what a run made, to look at."""

import click


@click.command()
@click.argument("output")
def report(output: str) -> None:
    """Write a gallery and figures of a run into OUTPUT/report."""
    from pipeline.report.write import write_report

    click.echo(f"The report is in {write_report(output)}")
