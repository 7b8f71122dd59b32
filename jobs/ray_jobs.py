"""Jobs on a Ray cluster, by its Jobs API: what is shipped, what goes along, and how a job ends."""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.models.configs import is_embedded

PACKAGES: Final = ("pipeline", "jobs", "cluster")
MAX_BYTES: Final = 64 * 2**20
"""Ray's server takes no more than 100 MiB; the code with the embedded checkpoints is a third of that."""
DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
STORAGE_SETTINGS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "HF_TOKEN",
)
"""What a worker needs to reach storage, and what the submitter's environment may hold of it."""

address_option = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="URL",
    help="The cluster's Jobs server, http://HEAD:8265.",
)


class JobError(ValueError):
    """Why a job cannot be submitted or found: one line for a person."""


def connect(address: str) -> JobSubmissionClient:
    """A client of the Jobs server at a URL; JobError if none answers."""
    if "://" not in address:
        address = f"http://{address}"
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray Jobs server answers at {address}: is the cluster up, is the port open?") from error


def pack(folder: Path, *models: str | None) -> int:
    """Fill a folder with what a job needs: the code, and the embedded checkpoints among `models`; bytes written.

    Never the current directory: manifests, outputs and checkpoints are read where they are. JobError if too large.
    """
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=_kept_out(root / "pipeline" / "checkpoints", models))
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        named = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise JobError(
            f"the code to ship has {total / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20}; largest: {named}. "
            "Put checkpoints on object storage and name them by --model URL"
        )
    return total


def _kept_out(checkpoints: Path, models: tuple[str | None, ...]) -> Callable[[Any, list[str]], set[str]]:
    def ignored(folder: Any, names: list[str]) -> set[str]:
        if Path(folder) == checkpoints:
            return {name for name in names if name not in models}
        return {name for name in names if name == "__pycache__" or name.endswith(".pyc")}

    return ignored


def storage_settings(
    environment: Mapping[str, str], more: tuple[str, ...] = (), *, storage: bool = True
) -> dict[str, str]:
    """The variables that go along with a job; JobError if one that was asked for is not set."""
    for name in more:
        if name not in environment:
            raise JobError(f"--env {name}: is not set here")
    names = (*(STORAGE_SETTINGS if storage else ()), *more)
    return {name: environment[name] for name in names if name in environment}


def find(client: JobSubmissionClient, job: str) -> JobDetails:
    """A job by its id; JobError if there is none."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise JobError(f"there is no job {job!r} at {client.get_address()}; `latentmill list` has all") from error
        raise JobError(f"the Jobs server did not answer: {str(error).splitlines()[0]}") from error


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print a job's log until it ends; the exit status of its command (1 if it was stopped or never began)."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            click.echo(text, nl=False)

    asyncio.run(tail())
    return ended(find(client, job))


def ended(details: JobDetails) -> int:
    """A job's exit status, said in a line if it is not that of its own command."""
    if details.driver_exit_code is not None and details.status != JobStatus.STOPPED:
        return details.driver_exit_code if details.driver_exit_code >= 0 else 1
    if details.status == JobStatus.SUCCEEDED:
        return 0
    click.echo(f"Job {details.submission_id} is {details.status}: {details.message or 'no reason given'}", err=True)
    return 1


def as_row(details: JobDetails) -> dict[str, Any]:
    """What is told of a job: no runtime environment, which holds keys."""
    return {
        "id": details.submission_id,
        "status": str(details.status.value),
        "exit_status": details.driver_exit_code,
        "start_time": details.start_time,
        "end_time": details.end_time,
        "message": details.message,
        **{name: (details.metadata or {}).get(name) for name in ("task", "manifest", "output", "model")},
    }


def rewritten(command: click.Command, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """A command line checked here, with local paths made absolute since the job runs in another folder; its values."""
    with command.make_context(command.name, list(arguments), resilient_parsing=False) as context:
        values = dict(context.params)
        given = [
            parameter
            for parameter in command.params
            if context.get_parameter_source(parameter.name or "") == click.core.ParameterSource.COMMANDLINE
        ]
    if values.get("address"):
        raise click.UsageError("--address stands before `--`: the job runs on the cluster that it is submitted to")
    for name in ("manifest", "output", "model", "clip_score"):
        if values.get(name) is not None:
            values[name] = _absolute(values[name], model=name in ("model", "clip_score"))
    values["allow_roots"] = tuple(_absolute(root) for root in values["allow_roots"])
    options: list[str] = []
    for parameter in given:
        if isinstance(parameter, click.Option):
            options += _spelled(parameter, values[parameter.name or ""])
    return [command.name or "", *options, "--", values["manifest"], values["output"]], values


def _spelled(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.opts[0]] if value else option.secondary_opts[:1]
    if option.multiple:
        return [text for item in value for text in (option.opts[0], str(item))]
    return [option.opts[0], *(str(part) for part in (value if option.nargs > 1 else (value,)))]


def _absolute(path: str, *, model: bool = False) -> str:
    if "://" in path or (model and is_embedded(path)):
        return path
    return os.path.abspath(path)
