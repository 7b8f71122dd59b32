"""The time to list many files: on the local disk, and on a simulated S3 server with latency.

`python -m tests.benchmarks.bench_listing --files 1000000`. The server only answers listings, 1,000 names at a time,
each after --latency seconds; its files do not exist.
"""

import argparse
import bisect
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pipeline import storage
from tests.s3 import CREDENTIALS

PAGE = 1000
PREFIX = "run/data/"


def make_names(files: int) -> list[str]:
    return sorted(f"{hashlib.md5(str(index).encode()).hexdigest()}.parquet" for index in range(files))


def make_server(names: list[str], latency: float) -> ThreadingHTTPServer:
    class Listings(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(latency)
            after = parse_qs(urlsplit(self.path).query).get("start-after", [""])[0].removeprefix(PREFIX)
            start = bisect.bisect_right(names, after)
            page = names[start : start + PAGE]
            contents = "".join(
                f"<Contents><Key>{PREFIX}{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;0&quot;</ETag><Size>1</Size></Contents>"
                for name in page
            )
            truncated = "true" if start + PAGE < len(names) else "false"
            body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{contents}</ListBucketResult>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Listings)


def peak_mib() -> float:
    """Return the peak of this process's resident memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure(url: str) -> None:
    before, started = peak_mib(), time.monotonic()
    files = storage.list_files(url)
    seconds = time.monotonic() - started
    growth = peak_mib() - before
    print(f"{storage.redact_url(url):<32} {len(files):>9,} files {seconds:>7.1f} s {growth:>7.0f} MiB more", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds per answer of the server")
    parser.add_argument("--list", dest="url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url:
        return measure(options.url)
    command = [sys.executable, "-m", "tests.benchmarks.bench_listing", "--list"]
    names = make_names(options.files)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).touch()
        subprocess.run([*command, folder], check=True)
    server = make_server(names, options.latency)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}"}
    subprocess.run([*command, "s3://bucket/run/data"], check=True, env=environment)
    return None


if __name__ == "__main__":
    main()
