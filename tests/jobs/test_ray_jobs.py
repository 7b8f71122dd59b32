"""The Jobs server of a cluster that is gone."""

import socket
import time

import pytest

from jobs.ray_jobs import JobError, connect


@pytest.mark.parametrize("listening", [False, True])
def test_a_jobs_server_that_is_gone_is_told_soon_in_one_line(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.ray_jobs._ANSWER_SECONDS", 1)
    started = time.monotonic()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # a server that hangs
            server.listen()
        with pytest.raises(JobError, match="no Ray Jobs server answers at http://127.0.0.1:.*: is the cluster up"):
            connect(f"127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - started < 10
