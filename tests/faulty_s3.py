"""A proxy on loopback between a client and an S3 server that injects the faults of busy servers and bad networks."""

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Final, Literal

Kind = Literal["slow down", "error", "forbidden", "too many", "timeout", "cut", "reply lost", "short"]
Moment = Literal["before", "within", "after"]

_ERRORS: Final[dict[Kind, tuple[int, str]]] = {
    "slow down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "forbidden": (403, "AccessDenied"),
    "too many": (429, "TooManyRequests"),
    "timeout": (400, "RequestTimeout"),
}
_DATE_LIMIT: Final = timedelta(minutes=15)
_BODY_FAULTS: Final = ("short", "timeout")
"""Faults that need a reply with a body; the reply to a HEAD request has none."""


@dataclass
class FaultyProxy:
    """The faults to inject into requests, and the count of those injected.

    "cut": the connection is reset before the request is forwarded; "reply lost": after it; "short": the reply ends in
    the middle of its body. The other kinds are error replies."""

    url: str
    kind: Kind | None = None
    chance: float = 1.0
    """Probability of a fault per request."""
    times: int | None = None
    """The number of faults still to inject; None: no limit."""
    injected: Counter[str] = field(default_factory=Counter)
    """Number of injected faults by kind."""
    on_request: Callable[[str, str, Moment, int], bool] = lambda method, path, moment, port: False
    """Called with method, path, moment and client port of each request; True drops the connection of a dead client."""
    ledger_delay: float = 0.0
    """Seconds by which a PUT of a ledger entry is delayed before it reaches the server."""
    listing_delay: float = 0.0
    """Seconds for which listings do not show a new key; reading the key itself works at once."""
    checks_dates: bool = False
    """Refuse requests whose date is over 15 minutes from the server's clock, as S3 does."""
    clock_offset: timedelta = timedelta()
    """By which the server's clock differs from this process's."""
    written_at: dict[str, float] = field(default_factory=dict)
    """When each path was written, on the monotonic clock."""

    @contextmanager
    def faulty(self, kind: Kind, *, chance: float = 1.0, times: int | None = None) -> Iterator[None]:
        """Inject faults for the duration of a `with` block."""
        self.kind, self.chance, self.times = kind, chance, times
        try:
            yield
        finally:
            self.kind = None

    def next_fault(self, method: str) -> Kind | None:
        """Return the fault to inject into a request, if any, and count it."""
        kind = self.kind
        if kind is None or (method == "HEAD" and kind in _BODY_FAULTS):
            return None
        if self.times == 0 or random.random() >= self.chance:
            return None
        if self.times is not None:
            self.times -= 1
        self.injected[kind] += 1
        return kind


@contextmanager
def faulty_proxy(server: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of the server at this URL, in its own thread."""
    host, _, port = server.removeprefix("http://").partition(":")
    loop = asyncio.new_event_loop()
    proxy = FaultyProxy("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _serve(proxy, (host, int(port)), reader, writer)
        writer.close()

    listener = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20))
    proxy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="faulty proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listener.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _serve(
    proxy: FaultyProxy, server: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one request, then close the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = await _read_body(head, reader)
    method, path = head.decode("latin-1").split(" ", 2)[:2]
    port = writer.get_extra_info("peername")[1]
    kind = proxy.next_fault(method)
    if kind == "cut" or proxy.on_request(method, path, "before", port):
        return writer.transport.abort()
    if proxy.checks_dates and (refusal := _refusal_of_date(head, method, proxy)):
        writer.write(refusal)
        return await writer.drain()
    if kind in _ERRORS:
        writer.write(_error_reply(*_ERRORS[kind], method))
        return await writer.drain()
    if method == "PUT":
        proxy.written_at[path.partition("?")[0]] = time.monotonic()
        if "/ledger/" in path:
            await asyncio.sleep(proxy.ledger_delay)
    upstream, to_server = await asyncio.open_connection(*server)
    try:
        to_server.write(_without_keep_alive(head) + body[: len(body) // 2])
        await to_server.drain()
        if proxy.on_request(method, path, "within", port):
            return writer.transport.abort()
        to_server.write(body[len(body) // 2 :])
        reply = await upstream.read()
    finally:
        to_server.close()
    if kind == "reply lost" or proxy.on_request(method, path, "after", port):
        return writer.transport.abort()
    start = reply.index(b"\r\n\r\n") + 4
    if proxy.listing_delay and method == "GET" and "list-type=2" in path:
        reply, start = _without_new_keys(reply, start, path, proxy)
    if kind == "short":
        reply = reply[: start + (len(reply) - start) // 2]
    writer.write(_without_keep_alive(reply[:start]) + reply[start:])
    return await writer.drain()


def _without_new_keys(reply: bytes, start: int, path: str, proxy: FaultyProxy) -> tuple[bytes, int]:
    """Return a listing without the keys of the last `listing_delay` seconds, and where its body starts."""
    bucket, now = path.partition("?")[0].strip("/"), time.monotonic()
    head, body = reply[:start], reply[start:]
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunked(body)

    def if_old(match: re.Match[bytes]) -> bytes:
        key = match[1].decode()
        is_new = now - proxy.written_at.get(f"/{bucket}/{key}", -proxy.listing_delay) < proxy.listing_delay
        proxy.injected["late listing"] += is_new
        return b"" if is_new else match[0]

    body = re.sub(rb"<Contents>(?:(?!</Contents>).)*?<Key>([^<]*)</Key>.*?</Contents>", if_old, body, flags=re.DOTALL)
    names = (b"content-length:", b"transfer-encoding:")
    lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(names)]
    head = b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""])
    return head + body, len(head)


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        parts.append(rest[:length])
        body = rest[length + 2 :] if length else b""
    return b"".join(parts)


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    headers = head.lower()
    if b"transfer-encoding: chunked" in headers:
        parts = [await reader.readuntil(b"\r\n")]
        while int(parts[-1].split(b";")[0], 16):
            size = int(parts[-1].split(b";")[0], 16)
            parts += [await reader.readexactly(size + 2), await reader.readuntil(b"\r\n")]
        return b"".join(parts) + await reader.readuntil(b"\r\n")
    _, has_length, rest = headers.partition(b"\r\ncontent-length:")
    return await reader.readexactly(int(rest.split(b"\r\n")[0])) if has_length else b""


def _without_keep_alive(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _refusal_of_date(head: bytes, method: str, proxy: FaultyProxy) -> bytes | None:
    """Return the reply to a signed request whose date is too far from the server's clock."""
    now = datetime.now(UTC) + proxy.clock_offset
    date = re.search(rb"x-amz-date: *(\d{8}T\d{6}Z)", head, re.IGNORECASE)
    if date is None or abs(datetime.strptime(f"{date[1].decode()}+0000", "%Y%m%dT%H%M%SZ%z") - now) < _DATE_LIMIT:
        return None
    proxy.injected["refused date"] += 1
    return _error_reply(403, "RequestTimeTooSkewed", method, f"Date: {format_datetime(now, usegmt=True)}\r\n")


def _error_reply(status: int, code: str, method: str, headers: str = "") -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code} from the proxy</Message></Error>'
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{headers}Connection: close\r\n\r\n{'' if method == 'HEAD' else body}".encode()
