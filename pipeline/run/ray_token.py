"""Ray's authentication token: a server on a machine that has one demands it; clients must be told to send it."""

import os
import secrets
from pathlib import Path


def use_token() -> None:
    """Send the token if there is one and RAY_AUTH_MODE is not set. Call this before Ray is imported.

    Ray creates a token in the home folder when it first starts on a machine."""
    if _is_named() or os.path.exists(_token_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def create_token_without_home() -> None:
    """Create a token for a local Ray where Ray itself could not: without a home folder that can be written.

    Containers with a user id of their own often have none. The token is in the environment of this process only."""
    home = Path(os.path.expanduser("~"))  # Path.home() raises an error where there is none
    can_write = home.is_absolute() and os.access(home, os.W_OK)
    if "RAY_AUTH_MODE" not in os.environ and not (_is_named() or can_write or os.path.exists(_token_file())):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _is_named() -> bool:
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))


def _token_file() -> str:
    return os.path.expanduser("~/.ray/auth_token")
