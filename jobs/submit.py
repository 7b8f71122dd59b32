"""`latentmill submit`: submit a command as a job to a Ray cluster."""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from ray.job_submission import JobSubmissionClient

from jobs.classify import classify
from jobs.generate import generate
from jobs.inpaint import inpaint
from jobs.ray_jobs import JobError, address_option, connect, find, follow, pack, rewritten, storage_settings
from jobs.train import train
from jobs.upscale import upscale

SUBMITTABLE: Final[dict[str, click.Command]] = {
    "generate": generate,
    "inpaint": inpaint,
    "upscale": upscale,
    "classify": classify,
    "train": train,
}
STOPPING: Final = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
"""`latentmill stop` sends SIGINT, as Ctrl-C does, and leaves the job time to commit its rows."""


@click.command()
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND ...")
@address_option
@click.option("--job-id", metavar="NAME", help="The job's id. [default: chosen by Ray]")
@click.option(
    "--env", "environment", multiple=True, metavar="NAME", help="Environment variable to send too; repeatable."
)
@click.option("--no-storage-env", is_flag=True, help="Do not send storage credentials; use the cluster's own.")
@click.option("--follow", "following", is_flag=True, help="Print the log until the job ends, and exit with its status.")
@click.option("--json", "as_json", is_flag=True, help="Print the submitted job as JSON.")
def submit(
    arguments: tuple[str, ...],
    address: str,
    job_id: str | None,
    environment: tuple[str, ...],
    no_storage_env: bool,
    following: bool,
    as_json: bool,
) -> int:
    """Submit a command as a job to a Ray cluster.

    latentmill submit --address URL -- generate MANIFEST OUTPUT ...

    The code is uploaded with the embedded checkpoints that the command names, and nothing else. MANIFEST, OUTPUT and
    --model must be reachable from the cluster: URLs, or paths that its machines share. Storage settings (AWS_...,
    AZURE_...) are sent in the job's environment, which everyone who can read the cluster's dashboard can see;
    --no-storage-env leaves them out. `train RECIPE OUTPUT` is submitted in the same way.

    Submit the same command again, with another id or none, to complete the missing rows.
    """
    if arguments[0] not in SUBMITTABLE:
        raise click.UsageError(f"{arguments[0]!r} cannot be submitted; choose one of {', '.join(SUBMITTABLE)}")
    command, values = rewritten(SUBMITTABLE[arguments[0]], list(arguments[1:]))
    settings = storage_settings(os.environ, environment, storage=not no_storage_env)
    client = connect(address)
    job, size = _submit(client, command, values, job_id, settings)
    if as_json:
        click.echo(json.dumps({"id": job, "bytes": size, "env": sorted(settings), "command": command}))
    else:
        names = f"; sent: {', '.join(sorted(settings))}" if settings else ""
        click.echo(f"Job {job} submitted ({size / 2**20:.0f} MiB of code{names})", err=following)
    sys.stdout.flush()
    if not following:
        return 0
    status = follow(client, job)
    click.echo(f"Job {job} ended: {find(client, job).status.value.lower()}, exit status {status}", err=True)
    return status


def _submit(
    client: JobSubmissionClient,
    command: list[str],
    values: Mapping[str, Any],
    job_id: str | None,
    variables: Mapping[str, str],
) -> tuple[str, int]:
    """Upload the code and start a job; return its id and the upload's size in bytes. JobError if it is refused."""
    with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
        size = pack(Path(folder), values.get("model"), values.get("vae"), values.get("clip_score"))
        try:
            job = client.submit_job(
                entrypoint="python -m jobs.cli " + shlex.join(command),
                submission_id=job_id,
                runtime_env={"working_dir": folder, "env_vars": {**variables, **STOPPING}},
                metadata={"task": command[0], **_paths(values)},
            )
        except (RuntimeError, ValueError) as error:
            raise JobError(_refusal(error, job_id)) from error
    return job, size


def _paths(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(values[name]) for name in ("manifest", "output", "model") if values.get(name) is not None}


def _refusal(error: Exception, job_id: str | None) -> str:
    if job_id is not None and "already" in str(error):
        return f"there is a job {job_id!r} already; give another --job-id"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the cluster refused the job: {lines[-1] if lines else type(error).__name__}"
