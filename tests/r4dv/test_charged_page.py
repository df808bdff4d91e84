"""A charge as a user sees it: ``ns-viewer`` and its page, ``ns-eval``, ``ns-train``, with the recording gone (A19)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from browser import BINARY, pictures_sent, viewer_page, wait_until
from capture_runs import NOISE
from commands import run
from viewer_panel import FIND_BOX, press, slider

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(line) for line in NOISE)]


@pytest.fixture(scope="module")
def charge(trained, recording, tmp_path_factory) -> Path:
    """The charge of a trained run; while it is used the recording is not there."""
    from r4dv_ns.charge_bake import bake

    folder = tmp_path_factory.mktemp("played") / "charge"
    bake(trained / "config.yml", folder)
    hidden = recording.rename(recording.with_name("hidden"))
    yield folder
    hidden.rename(recording)


def test_commands(charge, tmp_path):
    run("ns-eval", "--load-config", charge / "config.yml", "--output-path", tmp_path / "eval.json", cwd=tmp_path)
    found = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert found["psnr_masked"] > 14
    assert len(found["per_image"]) == 4
    said = run("ns-train", "r4dv-charged", "--data", charge, cwd=tmp_path, status=1)
    assert said.strip().splitlines()[-1].startswith("r4dv-charged has nothing to train.")
    assert "Traceback" not in said
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine")
def test_the_page_plays(charge, work, tmp_path):
    with viewer_page(charge / "config.yml", work, tmp_path / "profile", within=8) as (page, shown):
        first = shown()
        subject = (np.abs(first.astype(int) - first[2, 2]) > 30).any(axis=-1)
        rows, columns = np.nonzero(subject)
        middle = (rows.mean() / first.shape[0], columns.mean() / first.shape[1])
        assert all(0.25 < share < 0.75 for share in middle), "the start camera looks at the subject"
        assert slider(page, "Frame", "aria-valuemax") == 3
        count = len(pictures_sent(page.frames))
        press(page, "Frame", "ArrowRight", 39)
        press(page, "Frame", "ArrowRight", 39)
        wait_until("the slider", lambda: slider(page, "Frame") == 2)
        wait_until("a new rendering", lambda: page.evaluate("1") and len(pictures_sent(page.frames)) > count)
        assert np.abs(first.astype(int) - shown()).mean() > 0.5, "the juggler moves"
        press(page, "Frame", "Home", 36)
        wait_until("the slider", lambda: slider(page, "Frame") == 0)
        page.evaluate(f"{FIND_BOX % 'Play'}.click()")
        seen = set()
        wait_until("all frames in turn", lambda: seen.add(slider(page, "Frame")) or seen == {0, 1, 2, 3})
        page.evaluate(f"{FIND_BOX % 'Play'}.click()")
