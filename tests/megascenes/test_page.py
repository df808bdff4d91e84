"""``ns-viewer`` on a megascenes run: the page, its panel, warp and sampled picture (spec megascenes 8.3, check 12)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from browser import BINARY, Chromium, pictures_sent, viewer_page, wait_until
from commands import run
from planar_pairs import write_pairs

pytestmark = pytest.mark.slow

INPUT = """(() => {
    const labels = Array.from(document.querySelectorAll('label, div, span')).filter(
        each => !each.children.length && each.textContent.trim() === '%s');
    for (let part = labels[0]; part; part = part.parentElement) {
        const input = part.querySelector('input');
        if (input) return input;
    }
})()"""


def type_into(page: Chromium, label: str, text: str) -> None:
    """Replace what an input of the control panel holds, as a user types it."""
    page.evaluate(f"{INPUT % label}.focus()")
    page.evaluate(f"{INPUT % label}.select()")
    page.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


def coarse(picture: np.ndarray) -> np.ndarray:
    """Mean colours of a few blocks, whatever the size."""
    rows, columns = (np.linspace(0, side, 9).astype(int) for side in picture.shape[:2])
    blocks = [
        [picture[a:b, c:d].mean(axis=(0, 1)) for c, d in itertools.pairwise(columns)]
        for a, b in itertools.pairwise(rows)
    ]
    return np.array(blocks, float)


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_picking_a_reference_shows_its_warp_then_the_sampled_picture(tmp_path: Path):
    data = write_pairs(tmp_path / "pairs", 8, 2)
    run("ns-train", "megascenes-tiny", "--data", data, "--max-num-iterations", "2", "--vis", "tensorboard",
        "--output-dir", tmp_path / "outputs", "--timestamp", "page", "--machine.device-type", "cpu",
        cwd=tmp_path)  # fmt: skip
    config = tmp_path / "outputs" / "pairs" / "megascenes-tiny" / "page" / "config.yml"
    with viewer_page(config, tmp_path, tmp_path / "profile", within=40) as (page, shown):
        first = shown()
        assert first.std() > 10, "a blank page"
        sent = pictures_sent(page.frames)
        small = [picture for picture in sent if max(picture.shape) < 512]
        assert small, "the warp comes before the sampled picture"
        count = len(sent)
        type_into(page, "Reference pair", "5")

        def answer() -> list[np.ndarray] | None:
            """The renderings since, once the finished one is among them."""
            page.evaluate("1")
            new = pictures_sent(page.frames)[count:]
            large = [picture for picture in new if max(picture.shape) >= 512]
            return new if len(large) >= 2 and any(max(picture.shape) < 512 for picture in new) else None

        new = wait_until("warp and picture of the other reference", answer)
        warp = next(picture for picture in new if max(picture.shape) < 512)
        few, full = [picture for picture in new if max(picture.shape) >= 512][:2]
        assert np.abs(coarse(warp) - coarse(small[-1])).mean() > 3, "of another photo"
        assert np.abs(coarse(full) - coarse(warp)).mean() > 3, "sampled, not warped"
        assert np.abs(coarse(full) - coarse(few)).mean() > 0.1, "first of few steps, then finished"
