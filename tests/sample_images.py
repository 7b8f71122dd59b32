"""Small images and image files for tests."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def file_of(picture: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Return an image encoded as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def ramp(width: int = 20, height: int = 12) -> np.ndarray:
    """Return a color gradient, uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)), -1).astype(np.uint8)


def tiff_of(levels: np.ndarray, *, white_is_zero: bool = False, bits: int | None = None) -> bytes:
    """Return an uncompressed TIFF of gray levels (H, W) of any dtype, stored as they are.

    `bits` is the number of bits per sample that the header gives, if it is not the dtype's."""
    content = levels.astype(levels.dtype.newbyteorder("<")).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    height, width = levels.shape
    tags = {256: width, 257: height, 258: bits or 8 * levels.itemsize, 259: 1, 262: 0 if white_is_zero else 1, 273: 8}
    tags |= {277: 1, 278: height, 279: len(content), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    padding = b"\0" * (len(content) % 2)
    directory = struct.pack("<H", len(tags)) + entries + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8 + len(content) + len(padding)) + content + padding + directory


def png_of(row: bytes, width: int, bits: int, transparent: int) -> bytes:
    """Return a PNG of one row of grays with few bits, one level of which is transparent."""
    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    chunks = {
        b"IHDR": header,
        b"tRNS": struct.pack(">H", transparent),
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
