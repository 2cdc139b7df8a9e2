"""Pages of the pipeline in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from c2vl_pipeline.browse import audit, gallery, trace
from c2vl_pipeline.workspace import load

pytestmark = pytest.mark.browser
PROBE = """<script>addEventListener("load", () => {{
const frame = document.querySelector("iframe"), root = frame.contentDocument.documentElement;
document.title = [root.scrollWidth, frame.contentWindow.innerWidth, root.scrollHeight,
  [...frame.contentDocument.images].filter(i => i.naturalWidth > 0).length].join(" ");
}})</script><title></title><iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>"""


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", ["inspect", "explain", "audit"])
def test_a_browser_shows_the_page_without_overflow(odd, tmp_path, kind, width):
    browser = next(
        (b for n in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(n))), None
    )
    if browser is None:
        pytest.skip("needs a chromium binary")
    page = tmp_path / "page.html"
    if kind == "inspect":
        gallery.gallery(odd, page, limit=6)
    elif kind == "explain":
        trace.write(trace.trace(odd, load(odd).table["sample_id"][0].as_py()), page)
    else:
        audit.write(audit.measure(odd), page)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000"
    )
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 40},1000",
         "--dump-dom", f"file://{tmp_path / 'probe.html'}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500] + done.stderr[-500:]
    wide, window, tall, images = map(int, found.groups())
    assert window == width
    assert wide <= window
    assert tall > 900
    assert images > 0 or kind == "audit"
