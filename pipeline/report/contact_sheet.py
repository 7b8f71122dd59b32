"""The contact sheet: a run's images above their prompts, in one PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

THUMBNAIL_SIZE: Final = 256
"""The longer side of an image in a report, in pixels."""

Panel = tuple[Image.Image, ...]
"""The images of one row: its source and mask if it has them, and last its output."""

_COLUMNS: Final = 8
_MIN_IMAGE_SIZE: Final = 128
_CAPTION_LINES: Final = 3
_LINE_HEIGHT: Final = 14
_MARGIN: Final = 10


def render_contact_sheet(rows: Sequence[Mapping[str, Any]], panels: Sequence[Panel]) -> bytes:
    """Return a PNG with each row's panel above its prompt."""
    image_size = min(THUMBNAIL_SIZE, max(max(panel[-1].size) for panel in panels))
    while image_size < _MIN_IMAGE_SIZE:
        image_size *= 2
    images_per_panel = max(len(panel) for panel in panels)
    width = images_per_panel * image_size
    columns = min(max(1, _COLUMNS // images_per_panel), len(rows))
    font = ImageFont.load_default(11)
    captions = [_wrap(str(row.get("prompt") or row["id"]), font, width) for row in rows]
    height = image_size + _LINE_HEIGHT * max(len(lines) for lines in captions) + _MARGIN
    sheet_rows = -(-len(rows) // columns)
    sheet_size = (_MARGIN + columns * (width + _MARGIN), _MARGIN + sheet_rows * (height + _MARGIN))
    sheet = Image.new("RGB", sheet_size, "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for index, (panel, lines) in enumerate(zip(panels, captions, strict=True)):
        left = _MARGIN + index % columns * (width + _MARGIN)
        top = _MARGIN + index // columns * (height + _MARGIN)
        for position, image in enumerate(panel):
            resized = resize_image(image, image_size)
            x = left + position * image_size + (image_size - resized.width) // 2
            sheet.paste(resized, (x, top + (image_size - resized.height) // 2))
        for number, line in enumerate(lines):
            draw.text((left, top + image_size + 3 + number * _LINE_HEIGHT), line, fill="#222222", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize an image to `size` pixels on its longer side; factors of 2, 4 and 8 repeat pixels, so edges stay sharp."""
    scale = size / max(image.size)
    new_size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(new_size, Image.Resampling.NEAREST if scale in (2, 4, 8) else Image.Resampling.LANCZOS)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Return the text in at most _CAPTION_LINES lines of `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], lines[_CAPTION_LINES - 1] + "…"]
    return lines
