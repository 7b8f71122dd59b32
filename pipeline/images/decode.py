"""Decoding of image files. The only code that opens images from outside, which are not trusted.

Decoded pixels are uint8 (H, W, C): RGB for the networks; gray, gray and alpha, RGB or RGBA where an image keeps its
channels.
"""

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.errors import ImageError, one_line
from pipeline.images.alpha import flatten
from pipeline.images.channels import highest_level, read_channels
from pipeline.images.metadata import ImageMetadata, read_metadata
from pipeline.images.resize import to_gray

MAX_BYTES: Final = 64 * 2**20
"""Limit on the size of an image file."""

MAX_PIXELS: Final = 64 * 10**6
"""Limit on width times height of an image: 192 MB as decoded RGB."""

_MIN_COUNTED_SIDE: Final = 64
"""A shorter side counts as this many pixels against MAX_PIXELS, since networks work on squares of about this size."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
"""The Pillow decoders that are used. Others (PSD, ICNS, EPS, which starts a program, ...) are never tried."""

_ROTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

_PNG_BIT_DEPTH: Final = 24
"""Offset of a PNG's bits per channel."""

_NEW_SUBFILE_TYPE: Final = 254
"""TIFF tag of a page."""
_REDUCED, _TRANSPARENCY_MASK = 1, 4
_MAX_PAGES: Final = 16
"""Pages of a TIFF among which its main picture is searched."""


def counted_pixels(width: int, height: int) -> int:
    """Return the number of pixels that counts against MAX_PIXELS: very thin images count as 64 pixels thick."""
    return max(width, _MIN_COUNTED_SIDE) * max(height, _MIN_COUNTED_SIDE)


def decode_image(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, background: int = 255
) -> NDArray[np.uint8]:
    """Decode an image file to RGB, uint8 (H, W, 3), rotated as its EXIF orientation says.

    Transparent pixels are blended with a gray of level `background`. Of several frames or pages the main picture is
    taken: the first that is not a thumbnail. ImageError if the file is not one of FORMATS, exceeds a limit, is
    truncated or damaged, or has floating-point, 32-bit or signed levels."""
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        return flatten(_pixels(_upright_channels(picture)), background)


def decode_mask(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """Decode a mask file to gray levels, uint8 (H, W). Transparent pixels are black.

    ImageError as `decode_image`, and if its levels end at 1 of 255 (257 of 65,535): a mask of 0 and 1 in a file that
    stores white as 255 would be black everywhere."""
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        channels = _upright_channels(picture)
        highest, white = highest_level(picture, channels)
        if 0 < highest <= white // 255:
            raise ImageError(f"the mask's levels are 0 to {highest}; black is 0, and white must be {white}")
        return to_gray(flatten(_pixels(channels), 0))


def decode_with_metadata(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[NDArray[np.uint8], ImageMetadata]:
    """Decode an image file to uint8 (H, W, C) with its own channels, and return its metadata too.

    C is 1 (gray), 2 (gray and alpha), 3 (RGB) or 4 (RGBA). Palettes become RGB or RGBA. ImageError as `decode_image`.
    """
    with _open(image_bytes, max_pixels, max_bytes) as picture:
        channels = _upright_channels(picture)
        return _pixels(channels), read_metadata(picture, channels)


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
            _check_size(picture, max_pixels)
            if picture.format == "TIFF":
                _seek_main_page(picture)
                _check_size(picture, max_pixels)
            picture.load()
            _scale_transparent_level(picture, image_bytes)
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


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if counted_pixels(width, height) > max_pixels:
        thin = f", and a side under {_MIN_COUNTED_SIDE} counts as {_MIN_COUNTED_SIDE}" * (width * height <= max_pixels)
        raise ImageError(f"the image has {width} x {height} pixels; at most {max_pixels:,} are decoded{thin}")


def _seek_main_page(picture: Image.Image) -> None:
    """Go to the first page of a TIFF that is neither a thumbnail nor a mask, or stay at the first page."""
    for page in range(_MAX_PAGES):
        try:
            picture.seek(page)
        except EOFError:
            break
        tags = getattr(picture, "tag_v2", {})
        if not int(tags.get(_NEW_SUBFILE_TYPE, 0)) & (_REDUCED | _TRANSPARENCY_MASK):
            return
    picture.seek(0)


def _scale_transparent_level(picture: Image.Image, image_bytes: bytes) -> None:
    """Scale the transparent level of a PNG with 2 or 4 bits to 8 bits, as Pillow scales its pixels."""
    level = picture.info.get("transparency")
    bits = image_bytes[_PNG_BIT_DEPTH] if picture.format == "PNG" and picture.mode == "L" else 8
    if isinstance(level, int) and bits in (2, 4):
        picture.info["transparency"] = level * 255 // (2**bits - 1)


def _upright_channels(picture: Image.Image) -> Image.Image:
    """Return an image's channels with 8 bits each, rotated as its EXIF orientation says."""
    try:
        channels = read_channels(picture)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the image is damaged: {one_line(error)}") from error
    rotation = _ROTATIONS.get(_orientation(picture))
    return channels if rotation is None else channels.transpose(rotation)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - the pixels are usable without the EXIF block
        return 1


def _pixels(channels: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(channels, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[..., None]
