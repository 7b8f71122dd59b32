"""Render the page of a report: one HTML file that loads nothing from the network."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pipeline.report.contact_sheet import THUMBNAIL_SIZE, Panel
from pipeline.run.progress import duration_of
from pipeline.schema import PARAMETERS


def render_page(
    run: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    failures: Sequence[Mapping[str, Any]],
) -> str:
    """Return index.html: the run's figures, a card per row with its panel, the failed rows, and run.json.

    The template escapes all values, so HTML in a prompt is displayed as text."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2").render(
        title=run.get("model", {}).get("name") or "latentmill",
        figures=_figures(run, len(rows)),
        cards=[_card(row, panel) for row, panel in zip(rows, panels, strict=True)],
        failures=failures,
        run_json=json.dumps(run, indent=2, ensure_ascii=False),
    )


def _figures(run: Mapping[str, Any], row_count: int) -> dict[str, str]:
    """Return the run's figures by name: counts, rates and hardware."""
    last = run.get("last_attempt") or {}
    figures = {"images": f"{run.get('ok', row_count):,}", "failed rows": f"{run.get('failed', 0):,}"}
    if last.get("seconds"):
        figures["last attempt"] = duration_of(last["seconds"])
        figures["images per second"] = f"{last['images_per_second']:.2f}"
    if last.get("evaluations"):
        figures["lanes filled"] = f"{last['occupancy']:.0%}"
        figures["U-Net calls"] = f"{last['evaluations']:,}"
    for name in ("device", "dtype", "actors"):
        if run.get(name):
            figures[name] = str(run[name])
    return figures


def _card(row: Mapping[str, Any], panel: Panel) -> dict[str, Any]:
    """Return the values of one card: its images as data URLs, its prompt, and its parameters by name."""
    settings = {name: row.get(name) for name in PARAMETERS if name != "prompt" and row.get(name) not in (None, "")}
    settings |= {"sha256": row["sha256"][:16] + "…", "id": row["id"]}
    return {
        "images": [_data_url(image) for image in panel],
        "prompt": row.get("prompt") or row["id"],
        "settings": {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()},
    }


def _data_url(image: Image.Image) -> str:
    kind, buffer = ("webp" if max(image.size) == THUMBNAIL_SIZE else "png"), io.BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
