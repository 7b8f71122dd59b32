"""A Ray cluster of several nodes on one machine, to try what a real one does.

    python -m cluster.local up --nodes 3
    python -m cluster.local down

Each node is a `ray start --block` of its own; `down` ends those, and no other Ray of this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

_PATIENCE: Final = 300
"""Seconds for the nodes to come up."""
_ATTEMPTS: Final = 3


class ClusterError(RuntimeError):
    """Why a local cluster does not start or stop, in one line."""


class NodeEndedError(ClusterError):
    """A node ended while it started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCluster:
    """A cluster that runs: where it answers, and the processes that are its nodes, the head first."""

    address: str
    """Of Ray's GCS, host:port, for `ray.init` and RAY_ADDRESS."""
    jobs: str
    """URL of the Jobs server and the dashboard."""
    nodes: list[int]
    """Process ids of the nodes; a kill of one is the loss of that node."""
    sessions: str
    """Ray's own folder of the cluster."""


def up(
    name: str = "default", *, nodes: int = 3, cpus: int = 2, object_store_mib: int = 128, gpus: int = 0
) -> LocalCluster:
    """Start a cluster and wait until all its nodes are there; ClusterError if they do not come."""
    state = _state(name)
    if state.exists():
        raise ClusterError(f"the cluster {name!r} is up already, or was not ended: python -m cluster.local down")
    state.parent.mkdir(parents=True, exist_ok=True)
    sessions = tempfile.mkdtemp(prefix="lm", dir="/tmp")  # short: sockets in it have at most 107 letters
    gcs, dashboard, client, *agents = _free_ports(nodes + 3)
    size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={object_store_mib * 2**20}"]
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    head += ["--node-ip-address=127.0.0.1", f"--temp-dir={sessions}", f"--ray-client-server-port={client}"]
    cluster = LocalCluster(
        address=f"127.0.0.1:{gcs}", jobs=f"http://127.0.0.1:{dashboard}", nodes=[], sessions=sessions
    )
    log = Path(sessions) / "start.log"
    try:
        for index, agent in enumerate(agents):
            place = head if index == 0 else [f"--address={cluster.address}", "--node-ip-address=127.0.0.1"]
            arguments = [*place, *size, f"--dashboard-agent-listen-port={agent}"]
            _add_node(cluster, arguments, log, lambda: state.write_text(json.dumps(asdict(cluster))))
    except BaseException:
        down(name)
        raise
    return cluster


def down(name: str = "default") -> bool:
    """End a cluster's nodes and delete its files; whether there was one."""
    state = _state(name)
    if not state.exists():
        return False
    cluster = LocalCluster(**json.loads(state.read_text()))
    for node in reversed(cluster.nodes):
        _end(node, cluster.sessions)
    shutil.rmtree(cluster.sessions, ignore_errors=True)
    state.unlink()
    return True


def _add_node(cluster: LocalCluster, arguments: list[str], log: Path, save: Callable[[], object]) -> None:
    """Start a node and wait for it; again if it ends, for Ray gives a node 30 s, too few on a busy machine."""
    count = len(cluster.nodes) + 1
    for attempt in range(1, _ATTEMPTS + 1):
        cluster.nodes.append(_start(arguments, log))
        save()
        try:
            _wait_for_nodes(cluster, count, log)
            return
        except NodeEndedError:
            if attempt == _ATTEMPTS:
                raise
            _end(cluster.nodes.pop(), cluster.sessions)


def _start(arguments: list[str], log: Path) -> int:
    """The process id of a node; it leads a session of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"  # jobs run `python`
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).pid


def _wait_for_nodes(cluster: LocalCluster, count: int, log: Path) -> None:
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    deadline, reason = time.monotonic() + _PATIENCE, ""
    while time.monotonic() < deadline:
        if not _runs(cluster.nodes[-1]):
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise NodeEndedError(f"a node ended while it started: {' '.join(last)}")
        try:
            JobSubmissionClient(cluster.jobs)
            alive = [node for node in list_nodes(cluster.jobs, timeout=10) if node.state == "ALIVE"]  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as error:  # noqa: BLE001 - whatever a server says that is not ready yet
            alive, reason = [], f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        if len(alive) >= count:
            return
        time.sleep(0.5)
    raise ClusterError(f"{count} nodes did not come up in {_PATIENCE} s{reason}")


def _end(node: int, sessions: str) -> None:
    """End a node's session: politely, which lets Ray end its workers, then not.

    Nothing happens where the process id has become another's since: a session of ours has a process that names
    the cluster's own folder, and while any of its processes lives its number is given to no other.
    """
    if not any(sessions in _command(process) for process in _session(node)):
        return
    for chosen, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        if not _runs(node):
            break
        os.kill(node, chosen)
        deadline = time.monotonic() + patience
        while _runs(node) and time.monotonic() < deadline:
            time.sleep(0.1)
    for process in _session(node):  # what a killed node leaves: its raylet and workers
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    listed = subprocess.run(["ps", "-s", str(leader), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(process) for process in listed.stdout.split()]


def _command(process: int) -> str:
    """A process's whole command line, however wide the terminal; nothing once it has ended."""
    listed = subprocess.run(
        ["ps", "-ww", "-p", str(process), "-o", "args="], capture_output=True, text=True, check=False
    )
    return listed.stdout


def _runs(process: int) -> bool:
    try:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        pass  # not ours: `down` in another process than `up`
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _state(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"latentmill-clusters-{os.getuid()}" / f"{name}.json"


@click.group()
def main() -> None:
    """A Ray cluster of several nodes on this machine."""


name_option: Any = click.option("--name", default="default", show_default=True, help="To have several.")


@main.command("up")
@name_option
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True)
@click.option("--cpus", type=click.IntRange(1), default=2, show_default=True, help="Of each node; may be pretended.")
@click.option("--object-store-mib", type=click.IntRange(80), default=128, show_default=True, help="Of each node.")
def up_command(name: str, nodes: int, cpus: int, object_store_mib: int) -> None:
    """Start it."""
    try:
        cluster = up(name, nodes=nodes, cpus=cpus, object_store_mib=object_store_mib)
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{nodes} nodes are up. Jobs and dashboard: {cluster.jobs}  Ray: {cluster.address}")
    click.echo(f"export RAY_API_SERVER_ADDRESS={cluster.jobs}")


@main.command("down")
@name_option
def down_command(name: str) -> None:
    """End it, and no other."""
    click.echo("The cluster is down." if down(name) else f"There is no cluster {name!r}.")


if __name__ == "__main__":
    main()
