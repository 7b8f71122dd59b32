"""The connection to Ray: to an existing cluster, or to a local one for the time of a run."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import ray
from ray.data import DataContext
from ray.job_config import JobConfig

from pipeline.errors import RunError, one_line
from pipeline.run.ray_token import create_token_without_home

_ANSWER_SECONDS: Final = 10
"""How long a cluster may take to answer; Ray itself tries for a quarter of an hour."""
_ACTOR_START_FAILURES: Final = 3
"""Failures of actors' starts, one after another, before a run ends: a node may lose its storage for a while."""
_NO_TIMEOUT_SECONDS: Final = 30 * 86_400


@contextmanager
def connected(address: str | None, start: Callable[[], None] | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at `address` or RAY_ADDRESS, or else start a local one by `start`, and disconnect.

    A Ray that is initialized already is used and left running. RunError if no cluster answers at the address."""
    _configure_ray_data()
    ours = not ray.is_initialized()
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address and address != "local":
        _connect(address)
    elif ours:
        (start or start_local)()
    _configure_ray_data()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def start_local(*, num_cpus: int | None = None, num_gpus: int | None = None) -> None:
    """Start a local Ray; None: all CPUs or GPUs of this machine. RunError if its temporary folder has a long path."""
    create_token_without_home()
    try:
        with _silence_stderr():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=_WithoutCurrentFolder(),
            )
    except OSError as error:
        if "AF_UNIX path length" not in str(error):
            raise
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        raise RunError(
            f"{folder} is too long a path for the sockets of Ray, which have 107 bytes; "
            "set RAY_TMPDIR to a shorter folder, such as /tmp"
        ) from error


def _connect(address: str) -> None:
    _await_answer(address)
    try:
        with _silence_stderr():
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_WithoutCurrentFolder()
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"no Ray cluster answers at {address}: {one_line(error)}") from error


def _await_answer(address: str) -> None:
    """RunError if no cluster answers at an address within _ANSWER_SECONDS."""
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray._private.services import canonicalize_bootstrap_address

    try:
        server = canonicalize_bootstrap_address(address.removeprefix("ray://")) or address
    except (ConnectionError, OSError, ValueError) as error:
        raise RunError(f"no Ray cluster answers at {address}: {one_line(error)}") from error
    channel: Any = create_gcs_channel(server)
    with closing(channel):
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            found = f" (it is at {server})" if address == "auto" else ""
            raise RunError(
                f"no Ray cluster answers at {address}{found} within {_ANSWER_SECONDS} s; check that it is up, "
                "or give another --address (RAY_ADDRESS), or none for a local Ray"
            ) from None


class _WithoutCurrentFolder(JobConfig):
    """A job whose workers import from the current folder only if this process does.

    Ray puts the current folder first on the path of every worker, so that a file of the user's that happens to be
    named `pipeline.py` would run instead of this package."""

    def _serialize(self) -> Any:
        folder = os.getcwd()
        if folder not in map(os.path.abspath, sys.path):
            self._py_driver_sys_path = [path for path in self._py_driver_sys_path if path != folder]
        return super()._serialize()


def _configure_ray_data() -> None:
    """Switch off Ray Data's progress bars and its warnings on the terminal, and let an actor's start fail and repeat.

    Its log files remain."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NO_TIMEOUT_SECONDS  # the watchdog sees progress that Ray does not
    context.max_consecutive_actor_init_deaths = _ACTOR_START_FAILURES
    context.use_datasource_v2 = False  # its reader starts tens of processes to read Parquet footers
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if not type(handler).__name__.startswith("SessionFile"):
                handler.setLevel(logging.CRITICAL)


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard standard error while Ray starts: its C++ code writes warnings there, even when they are switched off."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
