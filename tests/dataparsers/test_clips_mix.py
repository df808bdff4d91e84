"""``--mix``: what is written is what is read, and everything else is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.clips_mix import MixEntry, parse_mix


@given(
    layout=st.sampled_from(["auto", "folder", "re10k", "dl3dv", "mvimgnet", "co3dv2"]),
    path=st.text("abc/ .-_:", min_size=1, max_size=20).filter(lambda text: not text.startswith("/")),
    weight=st.none() | st.integers(1, 1000), window=st.none() | st.tuples(st.integers(2, 50), st.integers(0, 200)),
)  # fmt: skip
def test_entries_come_back(layout: str, path: str, weight: int | None, window: tuple[int, int] | None) -> None:
    text = f"{layout}:{path}" + ("" if weight is None else f":{weight}")
    begin = end = None
    if weight is not None and window is not None:
        begin, end = float(window[0]), float(window[0] + window[1])
        text += f":{window[0]}:{window[0] + window[1]}"
    assert parse_mix(text, Path("/sets")) == MixEntry(layout, Path("/sets") / path, weight, begin, end)


def test_absolute_paths_stay() -> None:
    assert parse_mix("re10k:/data/x:3:40:200", Path("/sets")) == MixEntry("re10k", Path("/data/x"), 3, 40.0, 200.0)


BAD = {
    "": "names no layout",
    "re10k": "names no layout",
    "/data/re10k": "names no layout",
    "imagenet:/data": "names no layout",
    "re10k:": "cannot be read",
    "re10k::1": "cannot be read",
    "re10k:x:1:40": "cannot be read",
    "re10k:x:0": "has the weight 0",
    "re10k:x:1.5": "has the weight 1.5",
    "re10k:x:2000": "has the weight 2000",
    "re10k:x:1:40:20": "grows windows from 40 to 20",
    "re10k:x:1:1:20": "grows windows from 1 to 20",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_entries(text: str) -> None:
    with pytest.raises(DataError, match=BAD[text]):
        parse_mix(text)
