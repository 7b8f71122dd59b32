"""Decoding of image files. The only code that opens images from outside, which are not trusted.

Decoded pixels are uint8 (H, W, C): RGB for the networks; gray, gray and alpha, RGB or RGBA where an image keeps its
channels.
"""

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from pipeline.errors import ImageError, one_line
from pipeline.images.metadata import ImageMetadata, read_metadata

MAX_BYTES: Final = 64 * 2**20
"""Limit on the size of an image file."""

MAX_PIXELS: Final = 64 * 10**6
"""Limit on width times height of an image: 192 MB as decoded RGB."""

MAX_SIDE: Final = 16_384
"""Limit on the width and on the height of an image, in pixels."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""The Pillow decoders that are used. Others (PSD, ICNS, EPS, which starts a program, ...) are never tried."""
_SIXTEEN_BIT_MODES: Final = ("I;16", "I;16B", "I;16L", "I")


def decode_image(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, background: int = 255
) -> NDArray[np.uint8]:
    """Decode an image file to RGB, uint8 (H, W, 3), rotated as its EXIF orientation says.

    Transparent pixels are blended with a gray of level `background`; 16-bit grays are reduced to their upper eight
    bits. ImageError if the file is not one of FORMATS, has several frames, exceeds a limit, or is truncated or
    damaged."""
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_to_rgb(_rotate_upright(picture), background), np.uint8)


def decode_mask(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """Decode a mask file to gray levels, uint8 (H, W). Transparent pixels are black. ImageError as `decode_image`."""
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_to_rgb(_rotate_upright(picture), 0).convert("L"), np.uint8)


def decode_with_metadata(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[NDArray[np.uint8], ImageMetadata]:
    """Decode an image file to uint8 (H, W, C) with its own channels, and return its metadata too.

    C is 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGBA). Palettes become RGB or RGBA, CMYK becomes RGB by its color
    profile, and 16-bit grays are reduced to their upper eight bits. ImageError as `decode_image`, and for
    floating-point pixels."""
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        upright = _rotate_upright(picture)
        try:
            converted = _to_eight_bit_mode(upright)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"the image is damaged: {one_line(error)}") from error
        pixels = np.asarray(converted, np.uint8)
        return pixels if pixels.ndim == 3 else pixels[..., None], read_metadata(upright, converted)


def _open(image_bytes: bytes, max_pixels: int, max_bytes: int) -> Image.Image:
    """Open an image, check its header, and read its pixels."""
    if not image_bytes:
        raise ImageError("the image is empty (0 bytes)")
    if len(image_bytes) > max_bytes:
        raise ImageError(f"the image has {len(image_bytes):,} bytes; at most {max_bytes:,} are decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags, and about sizes, which have limits of our own
            picture = Image.open(io.BytesIO(image_bytes), formats=FORMATS)
            _check_header(picture, max_pixels)
            picture.load()
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"the file is not an image that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image has far more than {max_pixels:,} pixels, which is the limit") from error
    except Exception as error:
        if "truncated" in str(error):
            raise ImageError("the image is truncated: the end of the file is missing") from error
        raise ImageError(f"the image is damaged: {one_line(error)}") from error
    return picture


def _check_header(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} x {height} pixels; at most {max_pixels:,} are decoded")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"the image has {width} x {height} pixels; at most {MAX_SIDE:,} per side are decoded")
    if getattr(picture, "is_animated", False):  # n_frames would read all frames of a GIF
        raise ImageError("the image has several frames; give an image with one frame")


def _rotate_upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - the pixels are usable without the EXIF block
        return picture


def _to_rgb(picture: Image.Image, background: int) -> Image.Image:
    """Convert to RGB; transparent pixels are blended with a gray of level `background`."""
    try:
        if picture.mode in _SIXTEEN_BIT_MODES:
            return _to_eight_bits(picture).convert("RGB")
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            base = Image.new("RGBA", layer.size, (background, background, background, 255))
            return Image.alpha_composite(base, layer).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:
        raise ImageError(f"the image is damaged: {one_line(error)}") from error


def _to_eight_bit_mode(picture: Image.Image) -> Image.Image:
    """Convert to L, LA, RGB or RGBA, whichever loses no channel."""
    if picture.mode in _SIXTEEN_BIT_MODES:
        return _to_eight_bits(picture)
    if picture.mode == "F":
        raise ImageError("the image has floating-point pixels; give an image with 8 or 16 bits per channel")
    if picture.mode == "CMYK":
        return _cmyk_to_rgb(picture)
    alpha = picture.has_transparency_data
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("LA" if alpha else "L")
    return picture.convert("RGBA" if alpha else "RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture).astype(np.int64)
    return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))


def _cmyk_to_rgb(picture: Image.Image) -> Image.Image:
    """Convert to sRGB by the image's color profile, or by simple subtraction if it has no usable one."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        converted = None
    return picture.convert("RGB") if converted is None else converted
