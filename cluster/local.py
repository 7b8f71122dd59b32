"""A Ray cluster of several nodes on one machine, to try what a real one does.

    python -m cluster.local up --nodes 3
    python -m cluster.local lose
    python -m cluster.local add
    python -m cluster.local down

`lose` kills a node as a spot machine goes; `add` brings one more. Each node is a `ray start --block` of its own; `down`
ends those, and no other Ray of this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from pipeline.run.ray_token import use_token

_START_TIMEOUT: Final = 300
"""Seconds for the nodes to come up."""
_ATTEMPTS: Final = 3


class ClusterError(click.ClickException):
    """Why a local cluster does not start or stop, in one line."""


class NodeEndedError(ClusterError):
    """A node ended while it started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCluster:
    """A cluster that runs: where it answers, and the processes that are its nodes, the head first."""

    name: str
    address: str
    """Of Ray's GCS, host:port, for `ray.init` and RAY_ADDRESS."""
    jobs: str
    """URL of the Jobs server and the dashboard."""
    nodes: list[int]
    """Process ids of the nodes; a kill of one is the loss of that node."""
    sessions: str
    """Where each node has a folder of its own."""
    size: list[str]
    """What `ray start` is told of each node's resources."""

    @classmethod
    def of(cls, name: str = "default") -> "LocalCluster":
        """The cluster of this name that is up; ClusterError if there is none."""
        try:
            return cls(**{"name": name, **json.loads(_state(name).read_text())})
        except FileNotFoundError as error:
            raise ClusterError(f"there is no cluster {name!r}; start one: python -m cluster.local up") from error


def up(
    name: str = "default", *, nodes: int = 3, cpus: int = 2, object_store_mib: int = 128, gpus: int = 0
) -> LocalCluster:
    """Start a cluster and wait until all its nodes are there; ClusterError if they do not come."""
    use_token()
    state = _state(name)
    if state.exists():
        raise ClusterError(f"the cluster {name!r} is up already, or was not ended: python -m cluster.local down")
    state.parent.mkdir(parents=True, exist_ok=True)
    sessions = tempfile.mkdtemp(prefix="lm", dir="/tmp")  # short: sockets in it have at most 107 letters
    gcs, dashboard, client = _free_ports(3)
    size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={object_store_mib * 2**20}"]
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    head += ["--node-ip-address=127.0.0.1", f"--ray-client-server-port={client}"]
    cluster = LocalCluster(
        name=name,
        address=f"127.0.0.1:{gcs}",
        jobs=f"http://127.0.0.1:{dashboard}",
        nodes=[],
        sessions=sessions,
        size=size,
    )
    try:
        _add_node(cluster, head)
        for _ in range(nodes - 1):
            _add_node(cluster, _joining(cluster))
    except BaseException:
        down(name)
        raise
    return cluster


def down(name: str = "default") -> bool:
    """End a cluster's nodes and delete its files; whether there was one."""
    state = _state(name)
    if not state.exists():
        return False
    cluster = LocalCluster.of(name)
    for node in reversed(cluster.nodes):
        _end(node, cluster.sessions)
    shutil.rmtree(cluster.sessions, ignore_errors=True)
    state.unlink()
    return True


def add(name: str = "default") -> LocalCluster:
    """Bring one more node, and wait until it is there."""
    use_token()
    cluster = LocalCluster.of(name)
    _add_node(cluster, _joining(cluster))
    return cluster


def lose(name: str = "default", node: int | None = None) -> LocalCluster:
    """SIGKILL a node with all that runs on it: the one whose process id is `node`, else the last; never the head."""
    cluster = LocalCluster.of(name)
    node = cluster.nodes[-1] if node is None else node
    if node not in cluster.nodes[1:]:
        raise ClusterError(f"process {node} is the head or no node; those that can be lost are {cluster.nodes[1:]}")
    if _is_ours(node, cluster.sessions):
        for process in (node, *_session(node)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    cluster.nodes.remove(node)
    _save(cluster)
    return cluster


def _joining(cluster: LocalCluster) -> list[str]:
    return [f"--address={cluster.address}", "--node-ip-address=127.0.0.1"]


def _save(cluster: LocalCluster) -> None:
    _state(cluster.name).write_text(json.dumps(asdict(cluster)))


def _add_node(cluster: LocalCluster, place: list[str]) -> None:
    """Start a node and wait for it; again if it ends, for Ray gives a node 30 s, too few on a busy machine."""
    log = Path(cluster.sessions) / "start.log"
    for attempt in range(1, _ATTEMPTS + 1):
        own = [f"--temp-dir={_folder(cluster)}", f"--dashboard-agent-listen-port={_free_ports(1)[0]}"]
        arguments = [*place, *cluster.size, *own]
        cluster.nodes.append(_start(arguments, log))
        _save(cluster)
        try:
            _wait_for_nodes(cluster, log)
            return
        except ClusterError as error:
            _end(cluster.nodes.pop(), cluster.sessions)
            _save(cluster)
            if attempt == _ATTEMPTS or not isinstance(error, NodeEndedError):
                raise


def _folder(cluster: LocalCluster) -> str:
    """A new node's own folder: nodes that shared one would each throw away the code that a job brings."""
    return f"{cluster.sessions}/{len(list(Path(cluster.sessions).glob('[0-9]*')))}"


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


def _wait_for_nodes(cluster: LocalCluster, log: Path) -> None:
    """Until so many nodes live as the cluster has; one that was just lost may be counted for a few seconds."""
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    deadline, reason = time.monotonic() + _START_TIMEOUT, ""
    while time.monotonic() < deadline:
        if not _runs(cluster.nodes[-1]):
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise NodeEndedError(f"a node ended while it started: {' '.join(last)}")
        try:
            JobSubmissionClient(cluster.jobs)
            alive = [node for node in list_nodes(cluster.jobs, timeout=10) if node.state == "ALIVE"]  # pyright: ignore[reportAttributeAccessIssue]
        except Exception as error:  # noqa: BLE001 - whatever a server says that is not ready yet
            alive, reason = [], f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        if len(alive) >= len(cluster.nodes):
            return
        time.sleep(0.5)
    raise ClusterError(f"{len(cluster.nodes)} nodes did not come up in {_START_TIMEOUT} s{reason}")


def _end(node: int, sessions: str) -> None:
    """End a node's session: politely, which lets Ray end its workers, then not; nothing if it is not ours."""
    if not _is_ours(node, sessions):
        return
    for chosen, stall_timeout in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        if not _runs(node):
            break
        os.kill(node, chosen)
        deadline = time.monotonic() + stall_timeout
        while _runs(node) and time.monotonic() < deadline:
            time.sleep(0.1)
    for process in _session(node):  # what a killed node leaves: its raylet and workers
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _is_ours(node: int, sessions: str) -> bool:
    """Whether the process id has not become another's since.

    A session of ours has a process that names the cluster's own folder, and while any of its processes lives its
    number is given to no other.
    """
    return any(sessions in _command(process) for process in _session(node))


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
    cluster = up(name, nodes=nodes, cpus=cpus, object_store_mib=object_store_mib)
    click.echo(f"{nodes} nodes are up. Jobs and dashboard: {cluster.jobs}  Ray: {cluster.address}")
    click.echo(f"export RAY_API_SERVER_ADDRESS={cluster.jobs}")


@main.command("lose")
@name_option
def lose_command(name: str) -> None:
    """Kill its last node as a spot machine goes; never the head."""
    click.echo(f"{len(lose(name).nodes)} nodes are left.")


@main.command("add")
@name_option
def add_command(name: str) -> None:
    """Bring one more node."""
    click.echo(f"{len(add(name).nodes)} nodes are up.")


@main.command("down")
@name_option
def down_command(name: str) -> None:
    """End it, and no other."""
    click.echo("The cluster is down." if down(name) else f"There is no cluster {name!r}.")


if __name__ == "__main__":
    main()
