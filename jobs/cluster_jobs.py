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
    """Say how a job stands."""
    _show([as_row(find(connect(address), job))], as_json, single=True)


@click.command()
@click.argument("job")
@address_option
@click.option("--follow", "following", is_flag=True, help="Go on until it ends, and end with its exit status.")
def logs(job: str, address: str, following: bool) -> int:
    """Print a job's log."""
    client = connect(address)
    find(client, job)
    if following:
        return follow(client, job)
    click.echo(client.get_job_logs(job), nl=False)
    return 0


@click.command()
@click.argument("job")
@address_option
@click.option("--wait", type=click.FloatRange(0), default=60, show_default=True, metavar="SECONDS", help="For its end.")
def stop(job: str, address: str, wait: float) -> None:
    """Stop a job; what is finished stays in its output, and the same command submitted again goes on."""
    client = connect(address)
    details = find(client, job)
    if details.status.is_terminal():
        click.echo(f"Job {job} has ended already: {details.status.value.lower()}")
        return
    client.stop_job(job)
    deadline = time.monotonic() + wait
    while not (details := find(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise JobError(f"job {job} has not ended after {wait:.0f} s; it was told to stop")
        time.sleep(0.5)
    click.echo(f"Job {job} is {details.status.value.lower()}")


@click.command("list")
@address_option
@json_option
def list(address: str, as_json: bool) -> None:
    """List the jobs of a cluster, the newest first."""
    jobs: tuple[JobDetails, ...] = tuple(job for job in connect(address).list_jobs() if job.submission_id)
    _show(sorted(map(as_row, jobs), key=lambda row: -(row["start_time"] or 0)), as_json)


def _show(rows: Any, as_json: bool, *, single: bool = False) -> None:
    from jobs.tables import print_table

    if as_json:
        click.echo(json.dumps(rows[0] if single else rows, indent=2))
        return
    if not rows:
        click.echo("There are no jobs.")
        return
    names = ("id", "status", "exit", "started", "task", "manifest", "output")
    print_table(names, map(_cells, rows), overflow="fold")
    if single and rows[0]["message"]:
        click.echo(rows[0]["message"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    began = row["start_time"] and datetime.fromtimestamp(row["start_time"] / 1000, UTC).strftime("%m-%d %H:%M:%S")
    exit_status = "" if row["exit_status"] is None else str(row["exit_status"])
    cells = (row["id"], row["status"], exit_status, began, row["task"], row["manifest"], row["output"])
    return tuple(str(cell or "") for cell in cells)
