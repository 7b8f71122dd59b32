"""`latentmill status|logs|stop|list`: the jobs of a Ray cluster."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click
from ray.job_submission import JobDetails

from jobs.ray_jobs import JobError, address_option, as_row, connect, find, follow

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("job")
@address_option
@json_option
def status(job: str, address: str, as_json: bool) -> None:
    """Show the status of a job."""
    _print_jobs([as_row(find(connect(address), job))], as_json, single=True)


@click.command()
@click.argument("job")
@address_option
@click.option("--follow", "following", is_flag=True, help="Print the log until the job ends, and exit with its status.")
def logs(job: str, address: str, following: bool) -> int:
    """Print the log of a job."""
    client = connect(address)
    find(client, job)
    if following:
        return follow(client, job)
    click.echo(client.get_job_logs(job), nl=False)
    return 0


@click.command()
@click.argument("job")
@address_option
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait for the job to end.",
)
def stop(job: str, address: str, wait: float) -> None:
    """Stop a job; its committed rows remain. Submit the same command again to continue."""
    client = connect(address)
    details = find(client, job)
    if details.status.is_terminal():
        click.echo(f"Job {job} has already ended: {details.status.value.lower()}")
        return
    client.stop_job(job)
    deadline = time.monotonic() + wait
    while not (details := find(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise JobError(f"job {job} was asked to stop but is still running after {wait:.0f} s")
        time.sleep(0.5)
    click.echo(f"Job {job} is {details.status.value.lower()}")


@click.command("list")
@address_option
@json_option
def list(address: str, as_json: bool) -> None:
    """List the jobs of a Ray cluster, newest first."""
    jobs: tuple[JobDetails, ...] = tuple(job for job in connect(address).list_jobs() if job.submission_id)
    _print_jobs(sorted(map(as_row, jobs), key=lambda row: -(row["start_time"] or 0)), as_json)


def _print_jobs(rows: Any, as_json: bool, *, single: bool = False) -> None:
    from jobs.tables import print_table

    if as_json:
        click.echo(json.dumps(rows[0] if single else rows, indent=2))
        return
    if not rows:
        click.echo("No jobs.")
        return
    names = ("id", "status", "exit", "started", "task", "manifest", "output")
    print_table(names, map(_cells, rows), overflow="fold")
    if single and rows[0]["message"]:
        click.echo(rows[0]["message"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    started = row["start_time"] and datetime.fromtimestamp(row["start_time"] / 1000, UTC).strftime("%m-%d %H:%M:%S")
    exit_status = "" if row["exit_status"] is None else str(row["exit_status"])
    cells = (row["id"], row["status"], exit_status, started, row["task"], row["manifest"], row["output"])
    return tuple(str(cell or "") for cell in cells)
