"""Image bytes <-> pixels, and resizing: the one place that decodes pictures from outside, which it does not trust.

Two forms of pixels: uint8 (H, W, 3) as files hold them, and float32 (3, H, W) in [-1, 1] as the networks take them.
"""

import io
import warnings
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

MAX_BYTES: Final = 64 * 2**20
MAX_PIXELS: Final = 64 * 10**6
"""What one picture may take: 64 MB as a file, 64 million pixels (192 MB) decoded."""

MAX_SIDE: Final = 16_384
"""Pixels of a picture's width or height, whatever the other is."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's decoders that are used; others (PSD, ICNS, EPS, which starts a program, ...) are never tried."""

Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_FILTERS: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


class ImageError(ValueError):
    """A picture that cannot be used; the text is one line that says why."""


def decode(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, background: int = 255
) -> NDArray[np.uint8]:
    """The picture as uint8 RGB (H, W, 3), turned upright by its EXIF orientation.

    What is transparent is laid on a grey of level `background`; 16-bit greys keep their upper eight bits.
    ImageError: not a picture of FORMATS, more than one frame, over a limit, cut off or damaged."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), background), np.uint8)


def decode_mask(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """The same as one channel (H, W), white (255) where the picture is white; transparency counts as black."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), 0).convert("L"), np.uint8)


def encode(
    pixels: NDArray[np.uint8],
    image_format: Literal["png", "webp", "jpeg"] = "png",
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """uint8 (H, W, 3) as a file: the same pixels, settings and Pillow give the same bytes.

    `quality` (1 to 100) is of webp and jpeg. `metadata` goes into PNG text chunks, into the EXIF description (as
    `key: value` lines) elsewhere."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if image_format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            text.add_itxt(key, value) if not value.isascii() else text.add_text(key, value)
        picture.save(buffer, "PNG", compress_level=6, pnginfo=text)
    elif image_format == "webp":
        picture.save(buffer, "WEBP", quality=quality, method=4, exif=_exif(metadata))
    elif image_format == "jpeg":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, exif=_exif(metadata))
    else:
        raise ValueError(f"image format {image_format!r}: use png, webp or jpeg")
    return buffer.getvalue()


def resize(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """uint8 (H, W, 3) or (H, W), stretched to the size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), _FILTERS[how]), np.uint8)


def resize_to_cover(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """Scaled with its proportions kept until it covers the size, and cut about its centre."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), _FILTERS[how]), np.uint8)


def floats_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def bytes_of(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 (3, H, W) in [-1, 1], clipped there -> uint8 (H, W, 3); rounded as diffusers rounds (half to even)."""
    levels = np.clip(pixels.astype(np.float32) / np.float32(2) + np.float32(0.5), 0, 1) * np.float32(255)
    return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))


def _opened(image_bytes: bytes, max_pixels: int, max_bytes: int) -> Image.Image:
    """A picture whose header has been checked and whose pixels have been read."""
    if not image_bytes:
        raise ImageError("the image is empty (0 bytes)")
    if len(image_bytes) > max_bytes:
        raise ImageError(f"the image has {len(image_bytes):,} bytes; at most {max_bytes:,} are decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags, and of sizes, for which the limit is our own
            picture = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
            _check_header(picture, max_pixels)
            picture.load()
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is no picture that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image has far more than {max_pixels:,} pixels, which is the limit") from error
    except Exception as error:
        if "truncated" in str(error):
            raise ImageError("the image is cut off: its end is missing") from error
        raise ImageError(f"the image is damaged: {_line(error)}") from error
    return picture


def _check_header(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels; at most {max_pixels:,} are decoded")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; no side may have over {MAX_SIDE:,}")
    if getattr(picture, "is_animated", False):  # not n_frames, for which all of a GIF's are read
        raise ImageError("the image has several frames; one is needed")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not make the pixels useless
        return picture


def _flattened(picture: Image.Image, background: int) -> Image.Image:
    """RGB, with what is transparent laid on a grey."""
    try:
        if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
            levels = np.asarray(picture).astype(np.int64)
            return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            base = Image.new("RGBA", layer.size, (background, background, background, 255))
            return Image.alpha_composite(base, layer).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:
        raise ImageError(f"the image is damaged: {_line(error)}") from error


def _exif(metadata: Mapping[str, str] | None) -> bytes:
    if not metadata:
        return b""
    exif = Image.Exif()
    exif[0x010E] = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    return exif.tobytes()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
