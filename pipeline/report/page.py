"""A run's gallery and figures: OUTPUT/report/index.html, which asks nothing of the network, and a contact sheet."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from pipeline.report.contact_sheet import THUMBNAIL, Panel
from pipeline.run.progress import duration_of
from pipeline.schema import PARAMETERS


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


def _data_url(picture: Image.Image) -> str:
    kind, buffer = ("webp" if max(picture.size) == THUMBNAIL else "png"), io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value if value is not None else ""), quote=True)


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
