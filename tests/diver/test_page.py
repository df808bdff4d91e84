"""``ns-viewer`` on a diver run: what its page shows in a browser, and every output without one."""

from __future__ import annotations

import pytest
from browser import BINARY, drag_turns_the_page

pytestmark = pytest.mark.slow


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_page_shows_the_object_and_follows_the_mouse(trained, work, tmp_path):
    drag_turns_the_page(trained / "config.yml", work, tmp_path / "profile")
