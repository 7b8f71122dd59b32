"""One attempt of a run: the command under test, as a process of its own that can be killed or stalled."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from torch import Tensor

from cluster import local
from pipeline import storage
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.inference.loaded_model import LoadedModel
from pipeline.output import lease
from pipeline.run.job import run_job
from tests.chaos.clock import Clock
from tests.cheap import FACTS, loaded_model_of, zeros

CLUSTER: Final = "chaos"
EXPIRY_SECONDS: Final = 4.0
"""After which a lease expires in these runs; 30 seconds in real ones."""
_COMMAND: Final = (sys.executable, "-m", "tests.chaos", "--run")
_SECONDS_PER_CALL: Final = 0.1
_IDLE: Final = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class Attempt:
    """One run of the command."""

    command: list[str]
    variables: Mapping[str, str]
    log: Path
    chance: random.Random
    clocks: Sequence[Clock]
    """That of the driver's machine, whose local Ray shares it, and that of a cluster's nodes."""
    address: str | None = None
    hosts: int = 0
    """The number of hosts that the run has had: a takeover starts the command on another."""

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self._on_host([*_COMMAND, *self.command]),
                env={**os.environ, **self.variables, **self.clocks[0].variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _on_host(self, command: list[str]) -> list[str]:
        """Return the command in a UTS namespace with a host name of its own; needs root."""
        script = f'hostname host-{self.hosts} && exec "$0" "$@"'
        return command if self.hosts == 0 else ["unshare", "--uts", "sh", "-c", script, *command]

    def workers(self) -> list[tuple[psutil.Process, str]]:
        """Return the processes of this run's Ray with their titles."""
        roots = [self.process.pid] if self.address is None else local.LocalCluster.load(CLUSTER).nodes
        workers: list[tuple[psutil.Process, str]] = []
        for root in roots:
            with suppress(psutil.Error):
                workers += [(child, _title(child)) for child in psutil.Process(root).children(recursive=True)]
        return workers

    def kill(self, prefix: str) -> bool:
        """SIGKILL a busy process whose title starts with a prefix; return whether there was one."""
        victims = [process for process, title in self.workers() if title.startswith(prefix) and title not in _IDLE]
        with suppress(psutil.Error, IndexError):
            self.chance.choice(victims).kill()
            return True
        return False

    def kill_driver(self) -> bool:
        with suppress(psutil.Error):
            psutil.Process(self.process.pid).kill()
            return True
        return False

    def jump_clock(self) -> bool:
        self.chance.choice(self.clocks).jump(self.chance)
        return self.process.poll() is None

    def stall_driver(self) -> bool:
        """Suspend the driver for longer than its lease lasts on another host; its workers go on."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGSTOP)
            time.sleep(self.chance.uniform(1.0, 1.5) * EXPIRY_SECONDS)
            os.kill(self.process.pid, signal.SIGCONT)
            return True
        return False

    def take_over(self) -> bool:
        """Suspend the driver, start the command on another host, and resume the old driver once that one writes."""
        old = self.process
        with suppress(ProcessLookupError):
            before = self._leases()
            os.kill(old.pid, signal.SIGSTOP)
            self.hosts += 1
            self.start()
            deadline = time.monotonic() + 60
            while self.process.poll() is None and time.monotonic() < deadline and self._leases() <= before:
                time.sleep(0.2)
            taken = not self._leases() <= before
            os.kill(old.pid, signal.SIGCONT)
            with suppress(subprocess.TimeoutExpired):
                old.wait(60)
            if old.poll() is None:
                os.killpg(old.pid, signal.SIGKILL)
            return taken
        return False

    def _leases(self) -> set[str]:
        return set(storage.list_files(storage.join(self.command[1], "lease")))


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1])
    return ""


def run_attempt(manifest: str, output: str, address: str | None = None) -> int:
    """Run one attempt on a local Ray or on the one at the address, with two actors; return the exit status."""
    lease._EXPIRY_SECONDS, lease._HEARTBEAT_SECONDS = EXPIRY_SECONDS, EXPIRY_SECONDS / 6
    config = RunConfig(
        task="generate", manifest=manifest, output=output, actors=2, lanes=4, stall_timeout=120, address=address
    )
    try:
        print(run_job(config, load=_load, checkpoint=FACTS), flush=True)
    except RunError as error:
        print(error, flush=True)
        return 1
    return 0


def _load(config: RunConfig, device: str) -> LoadedModel:
    """Load the cheap model, slowed down so that it can be killed while it works."""

    def slow(*arguments: Any) -> Tensor:
        time.sleep(_SECONDS_PER_CALL)
        return zeros(*arguments)

    return loaded_model_of(config, slow)
