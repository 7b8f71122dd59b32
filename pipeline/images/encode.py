"""Encoding pixels as image files."""

import io
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.errors import ImageError
from pipeline.images.alpha import has_alpha
from pipeline.images.metadata import ImageMetadata, exif_bytes, save_options

_MAX_EXIF_BYTES: Final = {"jpeg": 65_533}
"""A JPEG holds the EXIF block in one segment."""
_MAX_SIDES: Final = {"jpeg": 65_535, "webp": 16_383}


def encode_image(
    pixels: NDArray[np.uint8],
    image_format: Literal["png", "webp", "jpeg"] = "png",
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
    tags: ImageMetadata | None = None,
) -> bytes:
    """Encode uint8 (H, W, C), C from 1 to 4. The same pixels, settings and Pillow version give the same bytes.

    `quality` (1 to 100) applies to webp and jpeg. `metadata` is written as PNG text chunks, or as the EXIF description
    (lines of `key: value`) of other formats, unless `tags` contain a description. ImageError if the format cannot store
    the image: a jpeg with transparency, or too many pixels per side."""
    _check(pixels, image_format)
    if image_format == "jpeg" and has_alpha(pixels):
        pixels = _opaque(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    options = save_options(tags or ImageMetadata())
    if image_format == "png":
        if tags is not None and tags.exif:
            options["exif"] = tags.exif
        picture.save(buffer, "PNG", compress_level=6, pnginfo=_text_chunks(metadata or {}), **options)
        return buffer.getvalue()
    options["exif"] = exif_bytes(metadata, tags, _MAX_EXIF_BYTES.get(image_format))
    if image_format == "webp":
        if pixels.shape[2] < 3:
            options.pop("icc_profile", None)  # WebP stores gray as RGB, for which a profile of grays does not hold
        picture.save(buffer, "WEBP", quality=quality, method=4, **options)
    elif image_format == "jpeg":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, **options)
    else:
        raise ValueError(f"the image format is {image_format!r}; use png, webp or jpeg")
    return buffer.getvalue()


def _check(pixels: NDArray[np.uint8], image_format: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; they must be uint8 (H, W, 1 to 4)")
    height, width = pixels.shape[:2]
    max_side = _MAX_SIDES.get(image_format, 2**31)
    if max(height, width) > max_side:
        raise ImageError(f"{width} x {height} pixels are too many for {image_format} ({max_side} per side)")


def _opaque(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels without their alpha channel, which must be opaque."""
    if pixels[..., -1].min() < 255:
        raise ImageError("the image has transparency, which jpeg cannot store; use png or webp")
    return pixels[..., :-1]


def _text_chunks(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, value) if value.isascii() else chunks.add_itxt(key, value)
    return chunks
