"""The connection to Ray: a cluster that is gone, and the folders from which workers import."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.processes import free_ports
from pipeline.errors import RunError
from pipeline.run.connection import connected

WORKER_PATH = """
import json
import ray
from pipeline.run.connection import connected, start_local

@ray.remote
def imported():
    import os
    import sys
    import pipeline.errors
    return [pipeline.errors.__file__, os.getcwd(), *sys.path]

with connected(None, lambda: start_local(num_cpus=1)):
    print(json.dumps(ray.get(imported.remote())))
"""


@pytest.fixture(autouse=True)
def _no_ray_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests leave one running, which `connected` would use."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.parametrize("listening", [False, True])
def test_a_cluster_that_is_gone_is_told_soon_in_one_line(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.connection._ANSWER_SECONDS", 2)
    (port,) = free_ports(1)
    started = time.monotonic()
    with socket.socket() as server:
        if listening:  # to another program
            server.bind(("127.0.0.1", port))
            server.listen()
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(RunError, match=f"no Ray cluster answers at {address} within 2 s; check") as raised:
                connected(address).__enter__()
            assert "\n" not in str(raised.value)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("address", ["nonsense", "host:port:more"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(RunError, match=f"no Ray cluster answers at {address}: "):
        connected(address).__enter__()


def test_workers_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("pipeline", "jobs", "cluster"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w')")
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("open('was-run', 'w')")
    command = [sys.executable, "-P", "-c", WORKER_PATH]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout
    file, folder, *path = json.loads(output)
    assert file == sys.modules["pipeline.errors"].__file__
    assert folder == str(tmp_path)  # relative paths still start here
    assert str(tmp_path) not in path and "" not in path
    assert not (tmp_path / "was-run").exists()


def test_a_temporary_folder_with_a_long_path_is_told_with_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from pipeline.run.connection import start_local; start_local(num_cpus=1)"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"} | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"pipeline.errors.RunError: {folder} is too long a path") and "set RAY_TMPDIR" in last
