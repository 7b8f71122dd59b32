"""Small images and image files for tests."""

import io

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
