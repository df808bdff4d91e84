"""``ns-viewer`` on an xfactor run: the page, its panel and the start camera (spec xfactor 8.2, 12 check 17)."""

from __future__ import annotations

import numpy as np
import pytest
from browser import BINARY, pictures_sent, viewer_page, wait_until
from viewer_panel import press, slider

pytestmark = pytest.mark.slow


def coarse(picture: np.ndarray) -> np.ndarray:
    """Means of blocks: what compression and a page that is a pixel wider leave alone."""
    return picture[:400, :560].reshape(20, 20, 20, 28, 3).astype(float).mean(axis=(1, 3))


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_position_slider_changes_the_picture(trained, work, tmp_path):
    with viewer_page(trained / "config.yml", work, tmp_path / "profile", within=12) as (page, shown):
        first = shown()
        assert first.std() > 10, "a blank page"
        assert slider(page, "Position") == 0.5
        count = len(pictures_sent(page.frames))
        press(page, "Position", "Home", 36)
        wait_until("the slider", lambda: slider(page, "Position") == 0)
        wait_until("a new rendering", lambda: page.evaluate("1") and len(pictures_sent(page.frames)) > count)
        # The control says what moves the picture now.
        script = "Array.from(document.querySelectorAll('input')).some(each => each.value === 'position slider')"
        wait_until("the control", lambda: page.evaluate(script))
        wait_until("the start of the clip", lambda: bool(np.abs(coarse(shown()) - coarse(first)).max() > 3))
