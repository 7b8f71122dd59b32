"""Jobs on a Ray cluster by its Jobs API: the uploaded code, the environment, the log and the exit status."""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import click
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline import storage
from pipeline.adapters import NamedPath
from pipeline.config import RunConfig
from pipeline.models.configs import is_embedded
from pipeline.settings import Location, settings_in

PACKAGES: Final = ("pipeline", "jobs", "cluster")
MAX_BYTES: Final = 64 * 2**20
"""The largest upload. Ray's server takes at most 100 MiB; the code with all embedded checkpoints is a third of that."""
DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
_ANSWER_SECONDS: Final = 10
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
"""Environment variables that give workers access to storage; those that are set are sent with a job."""

_LOCATIONS: Final[dict[str, Location]] = {
    **{name: setting.location for name, setting in settings_in(RunConfig).items() if setting.location is not None},
    "data": "path",
}
"""The arguments and options of commands that are paths."""

address_option = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="URL",
    help="URL of the cluster's Jobs server, http://HEAD:8265.",
)


class JobError(ValueError):
    """A job that cannot be submitted or found; the message is one line."""


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the Jobs server at a URL. JobError if it does not answer soon."""
    if "://" not in address:
        address = f"http://{address}"
    try:
        if address.startswith("http"):
            _await_answer(address)
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray Jobs server answers at {address}: is the cluster up, is the port open?") from error


def _await_answer(address: str) -> None:
    """Ask for the server's version; OSError if there is no answer, for which the client itself would wait for ever."""
    with suppress(HTTPError):  # an answer: the server wants a token, which the client has
        urlopen(f"{address.rstrip('/')}/api/version", timeout=_ANSWER_SECONDS).close()


def pack(folder: Path, *models: str | None) -> int:
    """Copy the code and the embedded checkpoints among `models` into a folder; return its size in bytes.

    Nothing is taken from the current directory. JobError if the folder is larger than MAX_BYTES.
    """
    root = Path(__file__).resolve().parent.parent
    checkpoints = root / "pipeline" / "checkpoints"
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=_ignored_files(checkpoints, models))
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        named = ", ".join(f"{path.relative_to(folder)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise JobError(
            f"the code to upload has {total / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20}; largest: {named}. "
            "Put checkpoints on object storage and name them by --model URL"
        )
    return total


def _ignored_files(checkpoints: Path, models: tuple[str | None, ...]) -> Callable[[Any, list[str]], set[str]]:
    def ignored(folder: Any, names: list[str]) -> set[str]:
        if Path(folder) == checkpoints:
            return {name for name in names if name not in models}
        return {name for name in names if name == "__pycache__" or name.endswith(".pyc")}

    return ignored


def storage_settings(
    environment: Mapping[str, str], more: tuple[str, ...] = (), *, storage: bool = True
) -> dict[str, str]:
    """Return the environment variables to send with a job. JobError if one of `more` is not set."""
    for name in more:
        if name not in environment:
            raise JobError(f"--env {name}: is not set")
    names = (*(STORAGE_SETTINGS if storage else ()), *more)
    return {name: environment[name] for name in names if name in environment}


def find(client: JobSubmissionClient, job: str) -> JobDetails:
    """Return a job by its id. JobError if it does not exist."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise JobError(f"there is no job {job!r} at {client.get_address()}; see `latentmill list`") from error
        raise JobError(f"the Jobs server did not answer: {str(error).splitlines()[0]}") from error


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print a job's log until it ends; return the exit status of its command, 1 if it was stopped or never started."""

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            click.echo(text, nl=False)

    asyncio.run(tail())
    return exit_status_of(find(client, job))


def exit_status_of(details: JobDetails) -> int:
    """Return a job's exit status; print a line if its command did not set it."""
    if details.driver_exit_code is not None and details.status != JobStatus.STOPPED:
        return details.driver_exit_code if details.driver_exit_code >= 0 else 1
    if details.status == JobStatus.SUCCEEDED:
        return 0
    click.echo(f"Job {details.submission_id} is {details.status}: {details.message or 'no reason given'}", err=True)
    return 1


def as_row(details: JobDetails) -> dict[str, Any]:
    """Return the public facts of a job, without its environment, which holds keys."""
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
    """Check a command line; return it with absolute local paths, since a job runs in another folder, and its values."""
    with command.make_context(command.name, list(arguments), resilient_parsing=False) as context:
        values = dict(context.params)
        given = [
            parameter
            for parameter in command.params
            if context.get_parameter_source(parameter.name or "") == click.core.ParameterSource.COMMANDLINE
        ]
    if values.get("address"):
        raise click.UsageError("--address stands before `--`: the job runs on the cluster that it is submitted to")
    for name, location in _LOCATIONS.items():
        if values.get(name) is not None:
            values[name] = _absolute(values[name], location)
    options: list[str] = []
    for parameter in given:
        if isinstance(parameter, click.Option):
            options += _command_line_of(parameter, values[parameter.name or ""])
    arguments = [str(values[each.name or ""]) for each in command.params if isinstance(each, click.Argument)]
    return [command.name or "", *options, "--", *arguments], values


def _command_line_of(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [option.opts[0]] if value else option.secondary_opts[:1]
    if option.multiple:
        return [text for item in value for text in (option.opts[0], str(item))]
    return [option.opts[0], *(str(part) for part in (value if option.nargs > 1 else (value,)))]


def _absolute(path: Any, location: Location) -> Any:
    if isinstance(path, NamedPath):
        return path._replace(path=_absolute(path.path, location))
    if isinstance(path, tuple):
        return tuple(_absolute(each, location) for each in path)
    if storage.is_url(path := str(path)) or (location == "checkpoint" and is_embedded(path)):
        return path
    return os.path.abspath(path)
