"""Start, inspect and stop the processes of Ray nodes; each node leads a session of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_STOP_SECONDS: Final = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""Signals that stop a node, and how long each is waited for. After SIGTERM Ray stops the node's workers itself."""


def start_node(arguments: Sequence[str], log: Path) -> int:
    """Run `ray start --block` in a new session, with its output in `log`; return its process id."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"  # jobs run `python`
    command = [
        sys.executable,
        "-P",
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        "--disable-usage-stats",
        *arguments,
    ]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ).pid


def stop_nodes(nodes: Sequence[int], folder: str) -> None:
    """Stop nodes at the same time, gracefully if possible; a process id that is not a node's any more is ignored."""
    nodes = [node for node in nodes if is_node(node, folder)]
    for signal_number, seconds in _STOP_SECONDS:
        for node in filter(is_running, nodes):
            os.kill(node, signal_number)
        deadline = time.monotonic() + seconds
        while any(map(is_running, nodes)) and time.monotonic() < deadline:
            time.sleep(0.1)
    for node in nodes:
        kill_session(node)  # the raylet and the workers of a node that did not stop them


def kill_session(leader: int) -> None:
    """SIGKILL all processes of a session."""
    for process in _session_processes(leader):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def is_node(node: int, folder: str) -> bool:
    """Check that the process id has not been reused since the node ended.

    A node's session has a process that names the cluster's folder in its command line, and while any of its processes
    is running, the system gives its process id to no other process."""
    return any(folder in _command_line(process) for process in _session_processes(node))


def is_running(process: int) -> bool:
    try:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        pass  # not a child of this process, if another process started the cluster
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return different ports that are free on 127.0.0.1."""
    sockets = [socket.socket() for _ in range(count)]
    for bound in sockets:
        bound.bind(("127.0.0.1", 0))
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def _session_processes(leader: int) -> list[int]:
    return [int(process) for process in _ps("-s", str(leader), "-o", "pid=").split()]


def _command_line(process: int) -> str:
    """Return a process's whole command line, whatever the terminal's width; empty once it has ended."""
    return _ps("-ww", "-p", str(process), "-o", "args=")


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout
