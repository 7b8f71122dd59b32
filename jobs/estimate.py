"""`latentmill estimate`: estimate the time, the actor hours and the output of a run."""

from typing import Any, cast

import click

from jobs.options import config_of, run_options
from pipeline.config import DEFAULT_MODELS, Task
from pipeline.models.configs import FORMS


@click.command()
@click.argument("manifest")
@click.option("--task", type=click.Choice(list(FORMS)), default="generate", show_default=True, help="Task to estimate.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Rows to run. [default: twice the lanes]")
@click.option("--price", type=click.FloatRange(0), metavar="PRICE", help="Price of one actor hour, in any currency.")
@run_options("estimate")
def estimate(manifest: str, task: str, rows: int | None, price: float | None, **options: Any) -> None:
    """Run a few rows of MANIFEST on one actor, and print the time, the actor hours and the output size of all rows.

    Nothing is written. The rows are taken evenly from the manifest. The estimate holds for actors with the device, the
    lanes and the threads that were used here.
    """
    from pipeline.run.estimate import estimate as estimate_run
    from pipeline.run.progress import duration_of

    options["model"] = options["model"] or DEFAULT_MODELS[task]
    config = config_of(cast(Task, task), manifest, "", options)
    result = estimate_run(config, rows or 2 * config.lanes)
    actors = config.actors or 1
    pace = (
        f"{result.timed} of {result.rows:,} rows timed on one actor: {result.seconds_per_row:.3g} s per row "
        f"({result.device})"
    )
    click.echo(pace + (f"; {result.failed} failed" if result.failed else ""))
    click.echo(f"time         {duration_of(3600 * result.hours(actors))} on {actors} actor{'s' * (actors > 1)}")
    click.echo(f"actor hours  {result.actor_hours(actors):,.2f}")
    click.echo(f"output       {_size_of(result.output_bytes)}")
    if price is not None:
        click.echo(f"cost         {price * result.actor_hours(actors):,.2f}")


def _size_of(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
