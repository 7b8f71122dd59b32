"""A Ray cluster of several nodes on one machine, for tests and trials.

    python -m cluster.local up --nodes 3
    python -m cluster.local kill
    python -m cluster.local add
    python -m cluster.local down

`kill` kills a node, as when a cloud reclaims a spot machine; `add` adds one. Each node is a `ray start --block` of its
own; `down` stops these nodes and no other Ray process of this machine."""

import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from cluster.processes import free_ports, is_node, is_running, kill_session, start_node, stop_nodes
from pipeline.run.ray_token import use_token

_START_TIMEOUT: Final = 300
"""Seconds for a node to join the cluster."""
_ATTEMPTS: Final = 3


class ClusterError(click.ClickException):
    """A local cluster cannot be started or changed; the message is one line."""


class NodeExitError(ClusterError):
    """A node exited while it started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCluster:
    """A running cluster: its addresses, and the processes of its nodes."""

    name: str
    address: str
    """The address of Ray's GCS, host:port, for `ray.init` and RAY_ADDRESS."""
    jobs_url: str
    """The URL of the Jobs server and the dashboard."""
    nodes: list[int]
    """The process ids of the nodes, the head first."""
    folder: str
    """The cluster's folder, with a subfolder for each node."""
    resources: list[str]
    """The options of `ray start` for each node's resources."""

    @classmethod
    def load(cls, name: str = "default") -> "LocalCluster":
        """Return the running cluster with this name; ClusterError if there is none."""
        try:
            return cls(**json.loads(_state_file(name).read_text()))
        except FileNotFoundError as error:
            raise ClusterError(f"there is no cluster {name!r}; start one: python -m cluster.local up") from error

    def save(self) -> None:
        _state_file(self.name).write_text(json.dumps(asdict(self)))


def up(
    name: str = "default", *, nodes: int = 3, cpus: int = 2, object_store_mib: int = 128, gpus: int = 0
) -> LocalCluster:
    """Start a cluster and wait until all its nodes have joined; ClusterError if they do not."""
    use_token()
    state = _state_file(name)
    if state.exists():
        raise ClusterError(f"the cluster {name!r} is running or was not stopped: python -m cluster.local down")
    state.parent.mkdir(parents=True, exist_ok=True)
    gcs, dashboard, client = free_ports(3)
    cluster = LocalCluster(
        name=name,
        address=f"127.0.0.1:{gcs}",
        jobs_url=f"http://127.0.0.1:{dashboard}",
        nodes=[],
        folder=tempfile.mkdtemp(prefix="lm", dir="/tmp"),  # short: the path of a socket has at most 107 characters
        resources=[f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={object_store_mib * 2**20}"],
    )
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    try:
        _start_node(cluster, [*head, f"--ray-client-server-port={client}"])
        for _ in range(nodes - 1):
            _start_node(cluster, [f"--address={cluster.address}"])
    except BaseException:
        down(name)
        raise
    return cluster


def down(name: str = "default") -> bool:
    """Stop a cluster's nodes and delete its files; return False if there is no such cluster."""
    state = _state_file(name)
    if not state.exists():
        return False
    cluster = LocalCluster.load(name)
    stop_nodes(cluster.nodes[1:], cluster.folder)
    stop_nodes(cluster.nodes[:1], cluster.folder)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    state.unlink()
    return True


def add_node(name: str = "default") -> LocalCluster:
    """Add a node and wait until it has joined."""
    use_token()
    cluster = LocalCluster.load(name)
    _start_node(cluster, [f"--address={cluster.address}"])
    return cluster


def kill_node(name: str = "default", node: int | None = None) -> LocalCluster:
    """SIGKILL a node and all its processes: the one with process id `node`, or the last one; never the head."""
    cluster = LocalCluster.load(name)
    node = cluster.nodes[-1] if node is None else node
    if node not in cluster.nodes[1:]:
        raise ClusterError(f"process {node} is not a worker node; the worker nodes are {cluster.nodes[1:]}")
    if is_node(node, cluster.folder):
        kill_session(node)
    cluster.nodes.remove(node)
    cluster.save()
    return cluster


def _start_node(cluster: LocalCluster, options: list[str]) -> None:
    """Start a node and wait until it has joined.

    Tries again if it exits: Ray gives up after 30 s, which is too short on a busy machine."""
    log = Path(cluster.folder) / "start.log"
    options = [*options, "--node-ip-address=127.0.0.1", *cluster.resources]
    for attempt in range(1, _ATTEMPTS + 1):
        own_options = [f"--temp-dir={_new_folder(cluster)}", f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        cluster.nodes.append(start_node([*options, *own_options], log))
        cluster.save()
        try:
            _wait_for_nodes(cluster, log)
            return
        except ClusterError as error:
            stop_nodes([cluster.nodes.pop()], cluster.folder)
            cluster.save()
            if attempt == _ATTEMPTS or not isinstance(error, NodeExitError):
                raise


def _new_folder(cluster: LocalCluster) -> str:
    """Return a folder for a new node: nodes with a common one would delete each other's copies of a job's code."""
    return f"{cluster.folder}/{len(list(Path(cluster.folder).glob('[0-9]*')))}"


def _wait_for_nodes(cluster: LocalCluster, log: Path) -> None:
    """Wait until the cluster has all its nodes. Ray may count a node that was killed for a few seconds more."""
    deadline, reason = time.monotonic() + _START_TIMEOUT, ""
    while time.monotonic() < deadline:
        if not is_running(cluster.nodes[-1]):
            last_lines = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise NodeExitError(f"a node exited while it started: {' '.join(last_lines)}")
        try:
            if _count_alive(cluster) >= len(cluster.nodes):
                return
        except Exception as error:  # noqa: BLE001 - a server that is not ready raises errors of many kinds
            reason = f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        time.sleep(0.5)
    raise ClusterError(f"the {len(cluster.nodes)} nodes did not start in {_START_TIMEOUT} s{reason}")


def _count_alive(cluster: LocalCluster) -> int:
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    JobSubmissionClient(cluster.jobs_url)  # raises an error if the Jobs server is not ready
    nodes = list_nodes(cluster.jobs_url, timeout=10)
    return sum(node.state == "ALIVE" for node in nodes)  # pyright: ignore[reportAttributeAccessIssue]


def _state_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"latentmill-clusters-{os.getuid()}" / f"{name}.json"


@click.group()
def main() -> None:
    """Run a Ray cluster of several nodes on this machine."""


name_option: Any = click.option("--name", default="default", show_default=True, help="The name of the cluster.")


@main.command("up")
@name_option
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True, help="Nodes, with the head.")
@click.option(
    "--cpus", type=click.IntRange(1), default=2, show_default=True, help="CPUs per node; may exceed the machine's."
)
@click.option(
    "--object-store-mib", type=click.IntRange(80), default=128, show_default=True, help="Object store per node, in MiB."
)
def up_command(name: str, nodes: int, cpus: int, object_store_mib: int) -> None:
    """Start a cluster."""
    cluster = up(name, nodes=nodes, cpus=cpus, object_store_mib=object_store_mib)
    click.echo(f"{nodes} nodes are running. Jobs and dashboard: {cluster.jobs_url}  Ray: {cluster.address}")
    click.echo(f"export RAY_API_SERVER_ADDRESS={cluster.jobs_url}")


@main.command("kill")
@name_option
def kill_command(name: str) -> None:
    """Kill the last node, as when a cloud reclaims a spot machine; never the head."""
    click.echo(f"{len(kill_node(name).nodes)} nodes are left.")


@main.command("add")
@name_option
def add_command(name: str) -> None:
    """Add a node."""
    click.echo(f"{len(add_node(name).nodes)} nodes are running.")


@main.command("down")
@name_option
def down_command(name: str) -> None:
    """Stop the cluster's nodes, and no other Ray process."""
    click.echo("The cluster is stopped." if down(name) else f"There is no cluster {name!r}.")


if __name__ == "__main__":
    main()
