"""Ray's authentication token: a server on a machine that has one demands it; clients must be told to send it."""

import os
from pathlib import Path


def use_token() -> None:
    """Send the token if there is one and RAY_AUTH_MODE is not set. Call this before Ray is imported.

    Ray creates a token in the home folder when it first starts on a machine."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
