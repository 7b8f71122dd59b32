"""S3: client settings, and parallel listings of large folders."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from pipeline.errors import StorageError
from pipeline.storage.retry import with_retries

S3_CLIENT_CONFIG: Final[dict[str, Any]] = {
    "connect_timeout": 15,
    "read_timeout": 120,
    "retries": {"total_max_attempts": 1, "mode": "standard"},  # `with_retries` retries and counts
}
_PAGE_SIZE: Final = 1000
"""Keys per page of a listing: the most that S3 allows."""


def disable_expect_header(filesystem: Any) -> None:
    """Send PUT requests without `Expect: 100-continue`: some servers never answer it, and the request hangs."""
    from botocore.handlers import add_expect_header

    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)


def parse_timestamps_fast(filesystem: Any) -> None:
    """Parse the timestamps of listings with `datetime.fromisoformat`.

    botocore's own parser accepts any format and takes three quarters of the time of a long listing."""
    from botocore.utils import parse_timestamp

    def parse(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return parse_timestamp(text)

    filesystem.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse)


def list_s3_files(filesystem: Any, path: str, url: str) -> list[str]:
    """Return the paths of all files below a folder, or the path itself if it is a file.

    A folder of more than one page is listed in parallel, one thread per range of keys."""
    bucket, _, key = path.partition("/")
    prefix = f"{key}/" if key else ""
    listing = _Listing(filesystem, bucket, prefix, url)
    try:
        keys, truncated = listing.page(prefix)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    if truncated:
        starts = [keys[-1], *(start for digit in "123456789abcdef" if (start := prefix + digit) > keys[-1])]
        with ThreadPoolExecutor(len(starts)) as pool:
            for part in pool.map(listing.keys_between, starts, [*starts[1:], None]):
                keys += part
    if not keys and key and with_retries(url, lambda: bool(filesystem.exists(path))):
        return [path]
    return [f"{bucket}/{key}" for key in keys]


class _Listing:
    """The keys of a bucket that start with a prefix."""

    def __init__(self, filesystem: Any, bucket: str, prefix: str, url: str) -> None:
        self._filesystem, self._bucket, self._prefix, self._url = filesystem, bucket, prefix, url

    def page(self, after: str) -> tuple[list[str], bool]:
        """Return the next keys after `after`, and True if there are more."""

        def request() -> dict[str, Any]:
            return self._filesystem.call_s3(
                "list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, StartAfter=after, MaxKeys=_PAGE_SIZE
            )

        reply = with_retries(self._url, request)
        return [item["Key"] for item in reply.get("Contents", ())], reply.get("IsTruncated", False)

    def keys_between(self, after: str, last: str | None) -> list[str]:
        """Return the keys after `after`, up to and including `last` (None: to the end)."""
        keys: list[str] = []
        truncated = True
        while truncated:
            page, truncated = self.page(after)
            keys += page if last is None else [key for key in page if key <= last]
            after = page[-1] if page else after
            truncated = truncated and (last is None or after <= last)
        return keys
