"""``ns-viewer`` on an r4dv run: the page, its frame slider, and the start camera (issue 4, acceptance 3)."""

from __future__ import annotations

import numpy as np
import pytest
from browser import BINARY, pictures_sent, viewer_page, wait_until
from viewer_panel import FIND_BOX, press, slider

pytestmark = pytest.mark.slow


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_frame_slider_changes_the_picture(trained, work, tmp_path):
    with viewer_page(trained / "config.yml", work, tmp_path / "profile", within=8) as (page, shown):
        first = shown()
        assert first.std() > 10, "a blank page"
        subject = (np.abs(first.astype(int) - first[2, 2]) > 30).any(axis=-1)
        rows, columns = np.nonzero(subject)
        middle = (rows.mean() / first.shape[0], columns.mean() / first.shape[1])
        assert all(0.25 < share < 0.75 for share in middle), "the start camera looks at the subject"
        assert slider(page, "Frame", "aria-valuemax") == 3
        assert slider(page, "Frame") == 0
        count = len(pictures_sent(page.frames))
        press(page, "Frame", "ArrowRight", 39)
        press(page, "Frame", "ArrowRight", 39)
        wait_until("the slider", lambda: slider(page, "Frame") == 2)
        wait_until("a new rendering", lambda: page.evaluate("1") and len(pictures_sent(page.frames)) > count)
        second = shown()
        assert np.abs(first.astype(int) - second).mean() > 0.5, "the juggler moves"
        wait_until("nerfstudio's own slider", lambda: slider(page, "Time") == 0.67)
        # nerfstudio's slider wins when it is the one that was touched.
        press(page, "Time", "Home", 36)
        wait_until("the frame slider to follow", lambda: page.evaluate("1") and slider(page, "Frame") == 0)
        wait_until("the first picture again", lambda: bool(np.abs(first.astype(int) - shown()).mean() < 0.5))
        # Play: the slider moves by itself until it is switched off.
        page.evaluate(f"{FIND_BOX % 'Play'}.click()")
        wait_until("the player", lambda: page.evaluate("1") and slider(page, "Frame") != 0)
        page.evaluate(f"{FIND_BOX % 'Play'}.click()")
