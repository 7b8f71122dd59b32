"""Encoding pixels as image files."""

import io
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.errors import ImageError
from pipeline.images.metadata import ImageMetadata, exif_bytes, save_options

_MAX_SIDES: Final = {"jpeg": 65_535, "webp": 16_383}


def encode_image(
    pixels: NDArray[np.uint8],
    image_format: Literal["png", "webp", "jpeg"] = "png",
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
    tags: ImageMetadata | None = None,
) -> bytes:
    """uint8 (H, W, C) as a file: the same pixels, settings and Pillow give the same bytes.

    `quality` (1 to 100) is of webp and jpeg. `metadata` goes into PNG text chunks, into the EXIF description (as
    `key: value` lines) elsewhere, if `tags` have none. ImageError: alpha in a jpeg, or more pixels than the format
    takes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"pixels must be uint8 (H, W, 1 to 4), not {pixels.dtype} {pixels.shape}")
    if max(pixels.shape[:2]) > (most := _MAX_SIDES.get(image_format, 2**31)):
        raise ImageError(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too many for {image_format} ({most} a side)"
        )
    if image_format == "jpeg" and pixels.shape[2] in (2, 4):
        raise ImageError("the picture is transparent in part, which jpeg cannot hold; give png or webp")
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    kept = save_options(tags or ImageMetadata())
    if image_format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            text.add_itxt(key, value) if not value.isascii() else text.add_text(key, value)
        if tags is not None and tags.exif:
            kept["exif"] = tags.exif
        picture.save(buffer, "PNG", compress_level=6, pnginfo=text, **kept)
    elif image_format == "webp":
        picture.save(buffer, "WEBP", quality=quality, method=4, exif=exif_bytes(metadata, tags), **kept)
    elif image_format == "jpeg":
        subsampling = 0 if quality >= 90 else 2
        picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling, exif=exif_bytes(metadata, tags), **kept)
    else:
        raise ValueError(f"image format {image_format!r}: use png, webp or jpeg")
    return buffer.getvalue()
