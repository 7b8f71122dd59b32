"""Ray's token is sent if there is one, and created where Ray cannot."""

import os
from pathlib import Path

import pytest

from pipeline.run.ray_token import create_token_without_home, use_token


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


@pytest.mark.parametrize("home", [None, "/nowhere"])
def test_a_token_is_created_without_a_home_folder(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # restores it after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user id without an entry
    if home is not None:
        monkeypatch.setenv("HOME", home)
    use_token()
    create_token_without_home()
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_home_folder_keeps_its_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    create_token_without_home()
    assert "RAY_AUTH_TOKEN" not in os.environ
