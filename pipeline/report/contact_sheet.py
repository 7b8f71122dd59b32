"""The contact sheet: pictures above their prompts, in one PNG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

SHEET_COLUMNS: Final = 8
SHEET_PICTURES: Final = 48
THUMBNAIL: Final = 256
"""Pixels of a picture's longer side in the gallery."""

Panel = tuple[Image.Image, ...]
"""A row's pictures in the order of its making: the source and the mask, where there are such, and the output."""

_LINE: Final = 14
_MARGIN: Final = 10


def contact_sheet(rows: Sequence[Mapping[str, Any]], panels: Sequence[Panel]) -> bytes:
    """A PNG with each row's panel above its prompt."""
    one = min(THUMBNAIL, max(max(panel[-1].size) for panel in panels))
    while one < 128:
        one *= 2
    each = max(len(panel) for panel in panels)
    side = each * one
    columns = min(max(1, SHEET_COLUMNS // each), len(rows))
    font = ImageFont.load_default(11)
    captions = [_wrapped(str(row.get("prompt") or row["id"]), font, side, 3) for row in rows]
    height = one + _LINE * max(len(lines) for lines in captions) + _MARGIN
    count = -(-len(rows) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * (side + _MARGIN), _MARGIN + count * (height + _MARGIN)), "#ffffff")
    draw = ImageDraw.Draw(sheet)
    for index, (panel, lines) in enumerate(zip(panels, captions, strict=True)):
        left = _MARGIN + index % columns * (side + _MARGIN)
        top = _MARGIN + index // columns * (height + _MARGIN)
        for place, picture in enumerate(panel):
            fitted = fit_image(picture, one)
            middle = left + place * one + (one - fitted.width) // 2
            sheet.paste(fitted, (middle, top + (one - fitted.height) // 2))
        for number, line in enumerate(lines):
            draw.text((left, top + one + 3 + number * _LINE), line, fill="#222222", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def fit_image(picture: Image.Image, side: int) -> Image.Image:
    """Scaled to `side` on its longer side; small pictures by whole pixels, so that they stay what they are."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale in (2, 4, 8) else Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + "…"]
    return lines
