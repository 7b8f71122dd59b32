"""`latentmill estimate`: what a run would take, before it is paid for."""

from typing import Any, Final

import click

from jobs.options import (
    DEFAULT_MODELS,
    PICTURE_OPTIONS,
    ROW_OPTIONS,
    RUN_OPTIONS,
    STRENGTH_OPTIONS,
    config_of,
    with_options,
)
from pipeline.models.configs import FORMS

ESTIMATE_OPTIONS: Final = (
    click.option("--task", type=click.Choice(list(FORMS)), default="generate", show_default=True),
    click.option("--model", metavar="PATH_OR_URL", help="A checkpoint folder. [default: the task's embedded one]"),
    click.option("--rows", type=click.IntRange(1), metavar="N", help="Rows to make. [default: twice the lanes]"),
    click.option("--price", type=click.FloatRange(0), metavar="PRICE", help="Of an actor's hour, in any currency."),
)


@click.command()
@click.argument("manifest")
@with_options(ESTIMATE_OPTIONS, ROW_OPTIONS, STRENGTH_OPTIONS, PICTURE_OPTIONS, RUN_OPTIONS)
def estimate(
    manifest: str, task: str, model: str | None, rows: int | None, price: float | None, **options: Any
) -> None:
    """Make a few rows of MANIFEST on one actor, and say the time, the actor hours and the output of all of them.

    Nothing is written. The rows are taken evenly from the manifest; what they take here is what an actor of the same
    device, lanes and threads takes.
    """
    from pipeline.run.estimate import estimate as estimated
    from pipeline.run.progress import duration_of

    config = config_of(task, manifest, "", {**options, "model": model or DEFAULT_MODELS[task]})  # pyright: ignore[reportArgumentType]
    found = estimated(config, rows or 2 * config.lanes)
    actors = config.actors or 1
    pace = (
        f"{found.timed} of {found.rows:,} rows timed on one actor: {found.seconds_per_row:.3g} s a row ({found.device})"
    )
    click.echo(pace + (f"; {found.failed} failed" if found.failed else ""))
    click.echo(f"time         {duration_of(3600 * found.hours(actors))} on {actors} actor{'s' * (actors > 1)}")
    click.echo(f"actor hours  {found.actor_hours(actors):,.2f}")
    click.echo(f"output       {_size(found.output_bytes)}")
    if price is not None:
        click.echo(f"cost         {price * found.actor_hours(actors):,.2f}")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
