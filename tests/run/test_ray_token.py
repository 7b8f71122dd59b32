"""Ray's token is sent if there is one and RAY_AUTH_MODE is not set."""

import os
from pathlib import Path

import pytest

from pipeline.run.ray_token import use_token


@pytest.mark.parametrize(
    ("token", "before", "after"), [(True, None, "token"), (False, None, None), (True, "disabled", "disabled")]
)
def test_a_token_is_used_where_there_is_one(
    token: bool, before: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", before or "")
    if before is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    use_token()
    assert os.environ.get("RAY_AUTH_MODE") == after
