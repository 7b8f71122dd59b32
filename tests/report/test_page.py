"""The page of a report: complete, self-contained, and safe with any text."""

import re

from PIL import Image

from pipeline.report.page import render_page

HOSTILE = """<script>alert(1)</script> '"> & {{ 7 * 7 }}"""
ROW = {"id": "a", "prompt": "a red circle", "seed": 7, "guidance_scale": 7.5, "sha256": "f" * 64}
FAILURE = {"id": "b", "error_type": "ValueError", "error_message": "this prompt is refused"}
PANEL = (Image.new("RGB", (8, 8), "red"),)


def test_the_page_has_figures_images_settings_and_failures() -> None:
    attempt = {"seconds": 4.0, "images_per_second": 0.5, "evaluations": 1200, "occupancy": 0.5}
    page = render_page({"ok": 2, "device": "cpu", "last_attempt": attempt}, [ROW, ROW], [PANEL, PANEL * 3], [FAILURE])
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == 4
    assert 'class="of1"' in page and 'class="of3"' in page
    for text in ("<b>0.50</b><span>images per second", "<b>1,200</b><span>U-Net calls", "<b>50%</b>", "<b>cpu</b>"):
        assert text in page
    for text in ("a red circle", "<dt>guidance_scale<dd>7.5<dt>", "<dt>seed<dd>7<dt>", "this prompt is refused"):
        assert text in page


def test_the_page_loads_nothing_from_the_network() -> None:
    page = render_page({}, [ROW], [PANEL], [])
    assert "default-src 'none';img-src data:" in page
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", page)
    assert "prefers-color-scheme:dark" in page and "addEventListener('input'" in page


def test_html_in_any_value_is_escaped() -> None:
    row = {**ROW, "id": HOSTILE, "prompt": HOSTILE, "negative_prompt": HOSTILE}
    run = {"model": {"name": HOSTILE}, "device": HOSTILE}
    page = render_page(run, [row], [PANEL], [{"id": HOSTILE, "error_type": HOSTILE, "error_message": HOSTILE}])
    assert "<script>alert(1)" not in page
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt; &#39;&#34;&gt; &amp; {{ 7 * 7 }}"
    assert page.count(escaped) == 2 + 1 + 4 + 3  # title and heading, figure, card, failed row
