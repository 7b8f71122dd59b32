"""Fuzzing: thousands of damaged images through the decoders, in processes with limits on memory and time.

`python -m tests.fuzz_images --files 6000` prints the results for each format. The exit status is 1 if a process
crashed, hung or ran out of memory, or if an error had no reason in one line. The same seed gives the same damage. Files
that broke a decoder are saved in --keep.
"""

import argparse
import io
import json
import resource
import signal
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from pipeline.errors import ImageError
from pipeline.images.decode import decode_image, decode_mask, decode_with_metadata

FORMATS: Final = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")
SECONDS_PER_FILE: Final = 10
MEMORY: Final = 2 * 2**30
"""Bytes of address space that a process may allocate."""
MAX_PIXELS: Final = 4_000_000
FILES_PER_PROCESS: Final = 500
_EDGE_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@cache
def seeds() -> tuple[tuple[str, bytes], ...]:
    """Return intact images of every format and pixel mode."""
    draws = np.random.default_rng(0)
    noise = Image.fromarray(draws.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    smooth = Image.linear_gradient("L").resize((53, 37))
    alpha = noise.copy()
    alpha.putalpha(smooth)
    deep = Image.fromarray(draws.integers(0, 65536, (37, 53), dtype=np.uint16))
    frames = [noise.resize((20, 20)), smooth.convert("RGB").resize((20, 20))]
    files: list[tuple[str, bytes]] = []

    def add(kind: str, picture: Image.Image, **options: object) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        files.append((kind, buffer.getvalue()))

    exif = Image.Exif()
    exif[0x0112] = 6
    for picture in (noise, smooth, alpha, deep, noise.quantize(16), smooth.convert("1"), smooth.convert("LA")):
        add("PNG", picture)
    add("PNG", noise, save_all=True, append_images=frames)
    add("PNG", noise, exif=exif, dpi=(300, 300))
    add("JPEG", noise, exif=exif)
    add("JPEG", noise, progressive=True)
    add("JPEG", smooth, quality=20)
    add("JPEG", noise.convert("CMYK"))
    add("WEBP", noise)
    add("WEBP", alpha, lossless=True)
    add("WEBP", frames[0], save_all=True, append_images=frames)
    add("GIF", noise)
    add("GIF", frames[0], save_all=True, append_images=frames)
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        add("TIFF", noise, compression=compression)
    add("TIFF", deep)
    add("TIFF", smooth.convert("F"))
    add("TIFF", noise, save_all=True, append_images=frames)
    add("TIFF", noise.convert("CMYK"), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    add("MPO", noise, save_all=True, append_images=frames, exif=exif)
    for picture in (noise, smooth, alpha):
        add("AVIF", picture)
        add("JPEG2000", picture)
    add("AVIF", frames[0], save_all=True, append_images=frames)
    add("JPEG2000", deep)
    add("BMP", noise)
    add("BMP", noise.quantize(16))
    return tuple(files)


def damage(content: bytes, random: Random) -> bytes:
    """Return a file with one to five random changes: bytes, numbers, parts deleted, repeated, or from another file."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        if not data:
            break
        position = random.randrange(min(len(data), random.choice((64, 400, len(data), len(data)))))
        kind = random.randrange(7)
        if kind == 0:
            data[position] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[position] = random.randrange(256)
        elif kind == 2:
            number = struct.pack(random.choice("<>") + "I", random.choice(_EDGE_NUMBERS))
            data[position : position + 4] = number[-random.choice((1, 2, 4)) :]
        elif kind == 3:
            del data[position : position + random.randint(1, 40)]
        elif kind == 4:
            data[position:position] = data[position : position + random.randint(1, 200)]
        elif kind == 5:
            del data[random.randrange(len(data)) :]
        else:
            other = random.choice(seeds())[1]
            start = random.randrange(len(other))
            data[position:position] = other[start : start + random.randint(1, 200)]
    return bytes(data)


def damaged_file(seed: int, index: int) -> tuple[str, bytes]:
    """Return the format and content of file `index` of the sequence that a seed defines."""
    random = Random(f"{seed}/{index}")
    kind = FORMATS[index % len(FORMATS)]
    return kind, damage(random.choice([content for name, content in seeds() if name == kind]), random)


DECODERS: Final[tuple[Callable[..., object], ...]] = (decode_image, decode_mask, decode_with_metadata)


def decode_verdict(content: bytes, decode: Callable[..., object]) -> str:
    """Return "decoded", the reason of an ImageError, or "! " and the decoder's error."""
    try:
        decode(content, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return str(error) if str(error).strip() and "\n" not in str(error) else f"! {str(error)!r} is not one line"
    except Exception as error:  # noqa: BLE001 - each is a finding
        return f"! {type(error).__name__}: {error}"
    return "decoded"


def decode_files(seed: int, start: int, count: int) -> None:
    """Decode a range of files within the limits; print a JSON line before and after each file."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for index in range(start, start + count):
        kind, content = damaged_file(seed, index)
        print(json.dumps([index, kind]), flush=True)
        signal.alarm(SECONDS_PER_FILE)  # its default action ends the process
        print(json.dumps([decode_verdict(content, decode) for decode in DECODERS]), flush=True)
        signal.alarm(0)


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that broke a decoder."""

    index: int
    kind: str
    message: str


def run(seed: int, files: int) -> Iterator[tuple[str, list[str]] | Finding]:
    """Yield each file's format and the decoders' verdicts, or a Finding."""
    start = 0
    while start < files:
        command = [sys.executable, "-m", "tests.fuzz_images", "--work", str(seed), str(start)]
        command.append(str(min(FILES_PER_PROCESS, files - start)))
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        for (index, kind), verdicts in zip(lines[::2], lines[1::2], strict=False):
            errors = [verdict for verdict in verdicts if verdict.startswith("! ")]
            yield Finding(index, kind, errors[0][2:]) if errors else (kind, verdicts)
            start = index + 1
        if len(lines) % 2:  # the process ended inside a file
            start, kind = lines[-1][0], lines[-1][1]
            yield Finding(start, kind, f"the process ended ({ended.returncode}) {ended.stderr.strip()[-200:]}")
            start += 1
        elif ended.returncode:
            raise RuntimeError(ended.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("work/fuzz"))
    parser.add_argument("--work", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        decode_files(*options.work)
        return 0
    table: dict[str, Counter[str]] = defaultdict(Counter)
    findings = 0
    for result in run(options.seed, options.files):
        if isinstance(result, Finding):
            findings += 1
            print(f"file {result.index}, {result.kind}: {result.message}", flush=True)
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{options.seed}-{result.index}").write_bytes(damaged_file(options.seed, result.index)[1])
            continue
        kind, verdicts = result
        table[kind]["decoded" if "decoded" in verdicts else verdicts[0].partition(":")[0]] += 1
    for kind in FORMATS:
        reasons = ", ".join(f"{count} {reason[:48]}" for reason, count in table[kind].most_common(5))
        print(f"{kind:<5} {table[kind].total():>6} files: {reasons}")
    print(f"{options.files} files, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
