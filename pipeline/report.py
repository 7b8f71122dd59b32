"""A run's gallery and figures: OUTPUT/report/index.html, which asks nothing of the network, and a contact sheet."""

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pipeline import storage
from pipeline.images import MAX_PIXELS
from pipeline.ledger import DATA, FAILED_FOLDER
from pipeline.pictures import picture_bytes
from pipeline.plan import RunError, read_run
from pipeline.progress import duration_of
from pipeline.report_sources import sources_of
from pipeline.schema import PARAMETERS

MAX_PICTURES: Final = 120
"""How many pictures the gallery shows, taken evenly from all files."""
MAX_FAILURES: Final = 50
SHEET_COLUMNS: Final = 8
SHEET_PICTURES: Final = 48
THUMBNAIL: Final = 256
"""Pixels of a picture's longer side in the gallery."""

Panel = tuple[Image.Image, ...]
"""A row's pictures in the order of its making: the source and the mask, where there are such, and the output."""

_LINE: Final = 14
_MARGIN: Final = 10


def write_report(output: str) -> str:
    """Write a run's report from what is in its output; gives the path of its index.html."""
    run = read_run(output)
    if run.get("task") == "classify":
        raise RunError(f"{storage.shown(output)}: holds labels; a report shows pictures")
    data = storage.list_files(storage.join(output, DATA), ".parquet")
    if not data and not run:
        raise RunError(f"{storage.shown(output)}: is no run's output; there is no run.json and no data")
    rows = _sample(output, data, MAX_PICTURES)
    failures = _failures(storage.list_files(storage.join(output, FAILED_FOLDER), ".parquet"))
    folder = storage.join(output, "report")
    sources = sources_of(run, rows, THUMBNAIL)
    panels = [(*sources.get(str(row["id"]), ()), _shrunk(_opened(picture_bytes(output, row)))) for row in rows]
    if rows:
        sheet = contact_sheet(rows[:SHEET_PICTURES], panels[:SHEET_PICTURES])
        storage.write_bytes(storage.join(folder, "contact_sheet.png"), sheet)
    index = storage.join(folder, "index.html")
    storage.write_bytes(index, page(run, rows, panels, failures).encode())
    return index


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
            fitted = _fitted(picture, one)
            middle = left + place * one + (one - fitted.width) // 2
            sheet.paste(fitted, (middle, top + (one - fitted.height) // 2))
        for number, line in enumerate(lines):
            draw.text((left, top + one + 3 + number * _LINE), line, fill="#222222", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def page(
    run: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    failures: Sequence[Mapping[str, Any]],
) -> str:
    """The whole index.html: figures, pictures with what made them, and what failed."""
    figures = "".join(
        f"<div class=figure><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in figures_of(run, len(rows)).items()
    )
    cards = "".join(_card(row, panel) for row, panel in zip(rows, panels, strict=True))
    failed = ""
    if failures:
        lines = "".join(
            f"<tr><td>{_text(row['id'])}<td>{_text(row['error_type'])}<td>{_text(row['error_message'])}"
            for row in failures
        )
        failed = f"<h2>Failed rows</h2><table><tr><th>id<th>kind<th>reason{lines}</table>"
    about = html.escape(json.dumps(run, indent=2, ensure_ascii=False))
    title = html.escape(str(run.get("model", {}).get("name") or "latentmill"))
    return _PAGE.format(
        title=title, style=_STYLE, figures=figures, cards=cards, failed=failed, about=about, script=_SCRIPT
    )


def figures_of(run: Mapping[str, Any], shown: int) -> dict[str, str]:
    """What is worth knowing of a run, by name."""
    last = run.get("last_attempt") or {}
    figures = {"pictures": f"{run.get('ok', shown):,}", "failed rows": f"{run.get('failed', 0):,}"}
    if last.get("seconds"):
        figures["last attempt"] = duration_of(last["seconds"])
        figures["pictures a second"] = f"{last['images_per_second']:.2f}"
    if last.get("evaluations"):
        figures["lanes filled"] = f"{last['occupancy']:.0%}"
        figures["U-Net calls"] = f"{last['evaluations']:,}"
    for name in ("device", "dtype", "actors"):
        if run.get(name):
            figures[name] = str(run[name])
    return figures


def _sample(output: str, files: Sequence[str], most: int) -> list[dict[str, Any]]:
    """At most `most` rows, evenly from at most that many files, but for what is too large to show.

    A damaged file is one line."""
    chosen = [files[index * len(files) // most] for index in range(most)] if len(files) > most else list(files)
    each = -(-most // max(1, len(chosen)))
    rows = [row for file in chosen for row in _rows(file, each) if row["width"] * row["height"] <= MAX_PIXELS]
    return sorted(rows, key=lambda row: str(row["id"]))[:most]


def _rows(file: str, most: int) -> Iterator[dict[str, Any]]:
    filesystem, path = storage.arrow_filesystem(file)
    try:
        yield from next(pq.ParquetFile(path, filesystem=filesystem).iter_batches(batch_size=most)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{storage.shown(file)}: cannot be read: {str(error).splitlines()[0]}") from error


def _failures(files: Sequence[str]) -> list[dict[str, Any]]:
    return [row for file in files[:MAX_FAILURES] for row in _rows(file, MAX_FAILURES)][:MAX_FAILURES]


def _card(row: Mapping[str, Any], panel: Panel) -> str:
    settings = {name: row.get(name) for name in PARAMETERS if name != "prompt" and row.get(name) not in (None, "")}
    settings |= {"sha256": row["sha256"][:16] + "…", "id": row["id"]}
    lines = "".join(f"<dt>{name}<dd>{_text(_short(value))}" for name, value in settings.items())
    prompt = _text(row.get("prompt") or row["id"])
    pictures = "".join(f"<img loading=lazy alt='{prompt}' src='{_data_url(picture)}'>" for picture in panel)
    return (
        f"<figure class=of{len(panel)}><div class=panel>{pictures}</div>"
        f"<figcaption>{prompt}</figcaption><details><summary>how</summary><dl>{lines}</dl></details></figure>"
    )


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    """No larger than the gallery shows it."""
    return _fitted(picture, THUMBNAIL) if max(picture.size) > THUMBNAIL else picture


def _data_url(picture: Image.Image) -> str:
    kind, buffer = ("webp" if max(picture.size) == THUMBNAIL else "png"), io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value if value is not None else ""), quote=True)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
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


_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c1c1e;--dim:#6b6b70;--ground:#f6f6f4;--card:#fff;--line:#e3e3df}
@media(prefers-color-scheme:dark){:root{--ink:#ececee;--dim:#9a9aa0;--ground:#161618;--card:#212124;--line:#333338}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:1280px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0 0 20px}h2{margin:40px 0 12px}
.figures{display:flex;flex-wrap:wrap;gap:10px;margin-bottom:24px}
.figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 16px}
.figure b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.figure span{color:var(--dim);font-size:12px}
input{width:100%;padding:10px 14px;margin-bottom:20px;border:1px solid var(--line);border-radius:10px;
background:var(--card);color:inherit;font:inherit}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(172px,1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}
.panel{display:flex;gap:2px}.of2{grid-column:span 2}.of3{grid-column:span 3}
img{display:block;flex:1;min-width:0;aspect-ratio:1;object-fit:contain;background:#0001;image-rendering:auto}
figcaption{padding:10px 12px 4px;overflow-wrap:anywhere}details{padding:0 12px 10px;font-size:12px;color:var(--dim)}
summary{cursor:pointer}dl{display:grid;grid-template-columns:auto 1fr;gap:2px 10px;margin:8px 0 0}
dd{margin:0;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%;background:var(--card)}
th,td{text-align:left;padding:8px 12px;border:1px solid var(--line);overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);
padding:14px;border-radius:10px}
"""

_SCRIPT: Final = """
document.querySelector('input').addEventListener('input',event=>{
  const words=event.target.value.toLowerCase().split(/\\s+/);
  for(const card of document.querySelectorAll('figure'))
    card.hidden=!words.every(word=>card.textContent.toLowerCase().includes(word));
});
"""

_PAGE: Final = """<!doctype html><html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy
content="default-src 'none';img-src data:;style-src 'unsafe-inline';script-src 'unsafe-inline'">
<title>{title}: report</title><style>{style}</style></head><body><main><h1>{title}</h1>
<div class=figures>{figures}</div>
<input type=search placeholder="Filter by prompt or setting" aria-label="Filter">
<div class=grid>{cards}</div>{failed}
<h2>The run</h2><details><summary>run.json</summary><pre>{about}</pre></details>
</main><script>{script}</script></body></html>
"""
