"""Windows by layout, rate, options and mix."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_folders import write_pictures, write_video

from core_ns.errors import DataError
from dataparsers.clips import catalogue
from dataparsers.clips_mix import MixEntry
from dataparsers.clips_sequence import Sequence
from xfactor_ns.clip_plan import WindowOptions, describe, make_plan, window_of

ENTRY = MixEntry("auto", Path("x"))


def clip(frames: int = 300, fps: float | None = None, stride: int = 1) -> Sequence:
    return Sequence("a", frames, (8, 8), fps, Path("a"), "natural", None, stride)


@pytest.mark.parametrize(
    ("dataset", "n", "expected"),
    [
        ("co3dv2", 2, (9, 20)), ("dl3dv", 2, (5, 10)), ("re10k", 2, (40, 100)), ("mvimgnet", 2, (5, 10)),
        ("co3dv2", 6, (9, 40)), ("dl3dv", 6, (6, 20)), ("re10k", 6, (40, 200)), ("mvimgnet", 6, (6, 20)),
    ],
)  # fmt: skip
def test_the_papers_windows(dataset: str, n: int, expected: tuple[int, int]) -> None:
    """Spec 2.2."""
    assert window_of(clip(), dataset, ENTRY, WindowOptions(frames_per_sample=n)) == expected


def test_user_video_counts_in_seconds() -> None:
    options = WindowOptions()
    assert window_of(clip(fps=30.0), "folder", ENTRY, options) == (15, 90)
    assert window_of(clip(fps=15.0, stride=2), "folder", ENTRY, options) == (7.5, 45), "the rate after thinning"
    assert window_of(clip(), "folder", ENTRY, options) == (5, 30), "ten frames per second where nobody knows"
    assert window_of(clip(stride=2), "folder", ENTRY, options) == (2.5, 15)
    assert window_of(clip(stride=10), "re10k", ENTRY, options) == (4, 10), "the paper counts stored frames"
    assert window_of(clip(), "folder", ENTRY, WindowOptions(begin_seconds=0.0, end_seconds=0.1)) == (2, 2)


def test_what_goes_first() -> None:
    options = WindowOptions(begin=7, end=70)
    assert window_of(clip(), "re10k", ENTRY, options) == (7, 70)
    assert window_of(clip(), "re10k", MixEntry("re10k", Path(), 1, 3.0, 9.0), options) == (3, 9)
    assert window_of(clip(), "re10k", ENTRY, WindowOptions(begin=150)) == (150, 150), "windows do not shrink"


def test_a_plan_of_two_collections(tmp_path: Path) -> None:
    for k in range(3):
        write_pictures(tmp_path / "re" / "train" / "images" / f"s{k}", 12, (8, 8), name="{}.png")
    write_pictures(tmp_path / "mine" / "a", 30, (8, 8))
    write_video(tmp_path / "mine" / "b.mp4", 40)
    found = [catalogue(tmp_path / name) for name in ("re", "mine")]
    entries = [MixEntry("auto", Path("re")), MixEntry("auto", Path("mine"), 2, 4.0, 8.0)]
    catalogues = list(zip(entries, found, strict=True))
    plan = make_plan(catalogues, [each.sequences for each in found], WindowOptions(frames_per_sample=6))
    assert [each.weight for each in plan.sets] == [3, 2], "the paper's weight, and the user's"
    assert plan.records == 3 * (3 + 2)
    assert describe(plan, 50_000) == [
        "Windows: up to 40 frames at first, 200 after 50000 updates, 6 frames of each (3 clips, 60 % of the samples)",
        "Windows: up to 6 frames at first, 8 after 50000 updates, 6 frames of each (2 clips, 40 % of the samples)",
    ]
    with pytest.raises(DataError, match="has no clip of more than 13 frames"):
        make_plan(catalogues, [each.sequences for each in found], WindowOptions(frames_per_sample=13))
