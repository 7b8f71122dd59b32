"""S3 requests that are signed with the server's time, since S3 refuses dates over 15 minutes from its own clock."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

_TOLERANCE: Final = timedelta(minutes=5)
"""A difference between the clocks below which a refused request has another reason."""


class _ServerClock:
    """The clock of the server that this process's requests go to."""

    def __init__(self) -> None:
        self._offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._offset

    def correct(self, response: Any = None, **_: Any) -> int | None:
        """Return 0, so that the client repeats a refused request at once, if the reply has another time.

        A handler of botocore's event `needs-retry`. Replies to HEAD requests say 403 but not why."""
        http_response = None if response is None else response[0]
        if http_response is None or http_response.status_code != 403:
            return None
        try:
            difference = parsedate_to_datetime(http_response.headers["Date"]) - self.now()
        except (KeyError, TypeError, ValueError):  # a reply without a date
            return None
        if abs(difference) < _TOLERANCE:
            return None
        self._offset += difference
        return 0


_clock: Final = _ServerClock()


def follow_server_clock(filesystem: Any) -> None:
    """Sign the requests of an s3fs filesystem with the server's time where this machine's clock is wrong."""
    import botocore.auth

    class Signer(botocore.auth.S3SigV4Auth):
        def _modify_request_before_signing(self, request: Any) -> None:
            request.context["timestamp"] = _clock.now().strftime(botocore.auth.SIGV4_TIMESTAMP)
            super()._modify_request_before_signing(request)

    botocore.auth.AUTH_TYPE_MAPS["s3v4"] = Signer
    filesystem.s3.meta.events.register("needs-retry.s3", _clock.correct)
