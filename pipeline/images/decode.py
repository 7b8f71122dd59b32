"""Image bytes <-> pixels, and resizing: the one place that decodes pictures from outside, which it does not trust.

Two forms of pixels: uint8 (H, W, 3) as files hold them, and float32 (3, H, W) in [-1, 1] as the networks take them.
Where a picture is to stay what it is, its file may also hold gray, gray and alpha, or RGBA: (H, W, C), C of 1 to 4.
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
MAX_PIXELS: Final = 64 * 10**6
"""What one picture may take: 64 MB as a file, 64 million pixels (192 MB) decoded."""

MAX_SIDE: Final = 16_384
"""Pixels of a picture's width or height, whatever the other is."""

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's decoders that are used; others (PSD, ICNS, EPS, which starts a program, ...) are never tried."""
_SIXTEEN_BITS: Final = ("I;16", "I;16B", "I;16L", "I")


def decode_image(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, background: int = 255
) -> NDArray[np.uint8]:
    """The picture as uint8 RGB (H, W, 3), turned upright by its EXIF orientation.

    What is transparent is laid on a gray of level `background`; 16-bit grays keep their upper eight bits.
    ImageError: not a picture of FORMATS, more than one frame, over a limit, cut off or damaged."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), background), np.uint8)


def decode_mask(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """The same as one channel (H, W), white (255) where the picture is white; transparency counts as black."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        return np.asarray(_flattened(_upright(picture), 0).convert("L"), np.uint8)


def decode_with_metadata(
    image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> tuple[NDArray[np.uint8], ImageMetadata]:
    """The picture as `decode` gives it, but gray, gray and alpha, RGB or RGBA, as it is; and its tags.

    Palettes become RGB or RGBA, CMYK RGB by its profile; 16-bit grays keep their upper eight bits. ImageError as of
    `decode`, and for floating-point pixels."""
    with _opened(image_bytes, max_pixels, max_bytes) as picture:
        upright = _upright(picture)
        try:
            kept = _kept(upright)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"the image is damaged: {one_line(error)}") from error
        values = np.asarray(kept, np.uint8)
        return values if values.ndim == 3 else values[..., None], read_metadata(upright, kept)


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
        raise ImageError(f"the image is damaged: {one_line(error)}") from error
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
    """RGB, with what is transparent laid on a gray."""
    try:
        if picture.mode in _SIXTEEN_BITS:
            return _eight_bits(picture).convert("RGB")
        if picture.has_transparency_data:
            layer = picture.convert("RGBA")
            base = Image.new("RGBA", layer.size, (background, background, background, 255))
            return Image.alpha_composite(base, layer).convert("RGB")
        return picture.convert("RGB")
    except Exception as error:
        raise ImageError(f"the image is damaged: {one_line(error)}") from error


def _kept(picture: Image.Image) -> Image.Image:
    """L, LA, RGB or RGBA, whichever the picture is."""
    if picture.mode in _SIXTEEN_BITS:
        return _eight_bits(picture)
    if picture.mode == "F":
        raise ImageError("the image has floating-point pixels; 8 or 16 bits are read")
    if picture.mode == "CMYK":
        return _rgb_of_cmyk(picture)
    alpha = picture.has_transparency_data
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("LA" if alpha else "L")
    return picture.convert("RGBA" if alpha else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture).astype(np.int64)
    return Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))


def _rgb_of_cmyk(picture: Image.Image) -> Image.Image:
    """sRGB by the picture's own profile; without a usable one, by plain subtraction."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
        found = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        found = None
    return picture.convert("RGB") if found is None else found
