"""Ray's token: a server on a machine that has one asks for it, and its clients bring it only where they are told to."""

import os
from pathlib import Path


def use_token() -> None:
    """Bring the token, where there is one and nothing else is said. To be called before Ray is imported.

    Ray makes one in the home folder when it first starts on a machine."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
