"""S3: client settings, and listings page by page."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from pipeline.errors import StorageError
from pipeline.storage.retry import retried

S3_CLIENT_CONFIG: Final[dict[str, Any]] = {
    "connect_timeout": 15,
    "read_timeout": 120,
    "retries": {"total_max_attempts": 1, "mode": "standard"},  # retries are ours: counted, and the same for all storage
}
_PAGE: Final = 1000
"""Names that an S3 server lists at once; it gives no more."""


def disable_expect_header(filesystem: Any) -> None:
    """A PUT that announces itself by `Expect: 100-continue` hangs on servers that never answer it."""
    from botocore.handlers import add_expect_header

    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)


def parse_timestamps_fast(filesystem: Any) -> None:
    """botocore takes times in any form, and spends three quarters of a long listing with those of the files."""
    from botocore.utils import parse_timestamp

    def time_of(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return parse_timestamp(text)

    filesystem.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=time_of)


def list_s3_files(filesystem: Any, path: str, url: str) -> list[str]:
    """Page by page; where one page does not hold all, from several places of the names at once."""
    bucket, _, key = path.partition("/")
    prefix = f"{key}/" if key else ""

    def page(after: str) -> tuple[list[str], bool]:
        """The names that come next, and whether there are more."""
        found = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=_PAGE)
        return [item["Key"] for item in found.get("Contents", ())], found.get("IsTruncated", False)

    def names(after: str, last: str | None) -> list[str]:
        """From a place on, up to another."""
        found: list[str] = []
        more = True
        while more:
            part, more = retried(url, lambda after=after: page(after))
            found += part if last is None else [name for name in part if name <= last]
            after = part[-1] if part else after
            more = more and (last is None or after <= last)
        return found

    try:
        found, more = retried(url, lambda: page(prefix))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    if more:
        places = [found[-1], *(place for digit in "123456789abcdef" if (place := prefix + digit) > found[-1])]
        with ThreadPoolExecutor(len(places)) as pool:
            for part in pool.map(names, places, [*places[1:], None]):
                found += part
    if not found and key and retried(url, lambda: bool(filesystem.exists(path))):
        return [path]
    return [f"{bucket}/{name}" for name in found]
