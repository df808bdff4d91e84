"""Which views and frames are used: samples against Python's slices, held-out views, presets, refused values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_ns.errors import DataError
from dataparsers.easymocap_options import (
    HULL_PRESETS,
    PRESETS,
    SequenceOptions,
    check_options,
    named_views,
    sampled,
    split_views,
    spread_frames,
    with_preset,
)

ROOT = Path("sequence")


@given(st.integers(1, 40), st.integers(0, 45), st.one_of(st.none(), st.integers(0, 45)), st.integers(1, 9))
def test_three_items_are_a_slice(count: int, begin: int, end: int | None, step: int) -> None:
    expected = list(range(count))[begin:end:step]
    if not expected:
        with pytest.raises(DataError):
            sampled(count, (begin, end, step), ROOT, "--frame-sample")
        return
    assert sampled(count, (begin, end, step), ROOT, "--frame-sample") == expected
    last = count if end is None else min(end, count)
    assert len(expected) == -((begin - last) // step)  # ceil((e - b) / s)


def test_other_lengths_are_lists() -> None:
    assert sampled(9, (7,), ROOT, "") == [7]
    assert sampled(9, (7, 2), ROOT, "") == [2, 7]
    assert sampled(9, (5, 1, 3, 1), ROOT, "") == [1, 3, 5], "a list of three is written with one repeated"
    assert sampled(9, (-1, 0), ROOT, "") == [0, 8]


@pytest.mark.parametrize("sample", [(0, None, 0), (4, 4, 1), (9,), (-10,), (0, None), ()])
def test_impossible_samples_are_refused(sample: tuple) -> None:
    with pytest.raises(DataError, match="--frame-sample"):
        sampled(9, sample, ROOT, "--frame-sample")


@pytest.mark.parametrize(("views", "held_out"), [(1, 0), (5, 0), (6, 1), (15, 1), (16, 4), (60, 4)])
def test_default_number_of_held_out_views(views: int, held_out: int) -> None:
    names = [f"{view:02d}" for view in range(views)]
    train, test = split_views(names, SequenceOptions(), ROOT)
    assert len(test) == held_out
    assert sorted(train + test) == list(range(views))
    if views % 4 == 0 and held_out > 1:
        assert set(np.diff(test)) == {views // 4}, "evenly spaced"
        assert test[0] == views // 8


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 9), st.data())
def test_held_out_views_are_never_trained_on(count: int, begin: int, every: int, data: st.DataObject) -> None:
    names = [f"{view:02d}" for view in range(count)]
    wanted = data.draw(st.one_of(st.just(("auto",)), st.lists(st.sampled_from(names), max_size=5).map(tuple)))
    options = SequenceOptions(view_sample=(begin, None, 1), eval_views=wanted, eval_every=every if every > 1 else 0)
    try:
        train, test = split_views(names, options, ROOT)
    except DataError:
        return
    assert train
    assert not set(train) & set(test)
    assert train == sorted(set(train))
    assert test == sorted(set(test))


def test_views_by_name_and_number() -> None:
    names = ["00", "01", "3", "cam_7"]
    assert named_views(names, ["3"], ROOT) == [2], "a name wins over a number"
    assert named_views(names, ["cam_7", "0"], ROOT) == [0, 3]
    assert named_views(names, ["-1"], ROOT) == [3]
    with pytest.raises(DataError, match=r"cam_9.*no camera"):
        named_views(names, ["cam_9"], ROOT)
    with pytest.raises(DataError, match="The 4 cameras are 00, 01, 3, cam_7"):
        named_views(names, ["4"], ROOT)


def test_other_ways_to_hold_out() -> None:
    names = [f"{view:02d}" for view in range(20)]
    assert split_views(names, SequenceOptions(eval_views=("none",)), ROOT) == (list(range(20)), [])
    assert split_views(names, SequenceOptions(eval_every=7), ROOT)[1] == [0, 7, 14]
    train, test = split_views(names, SequenceOptions(eval_views=("05", "15")), ROOT)
    assert test == [5, 15]
    assert len(train) == 18
    outside = SequenceOptions(view_sample=(0, 4, 1), eval_views=("12",))
    assert split_views(names, outside, ROOT) == ([0, 1, 2, 3], [12]), "held-out views are added to the sample"
    with pytest.raises(DataError, match="holds out all 2 views"):
        split_views(names, SequenceOptions(view_sample=(0, 2, 1), eval_views=("0", "1")), ROOT)


def test_frames_to_evaluate() -> None:
    assert spread_frames(1, (), ROOT) == [0]
    assert spread_frames(3, (), ROOT) == [0, 1, 2]
    assert spread_frames(21, (), ROOT) == [0, 5, 10, 15, 20]
    assert spread_frames(21, (-1, 4, 4), ROOT) == [4, 20]
    with pytest.raises(DataError, match=r"--eval-frames.*names frame 3"):
        spread_frames(3, (3,), ROOT)


def test_presets_fill_what_is_left_at_its_default() -> None:
    assert with_preset(SequenceOptions(dataset_preset="renbody")).ratio == (0.5,)
    outdoor = with_preset(SequenceOptions(dataset_preset="enerf_outdoor", near=2.0))
    assert (outdoor.near, outdoor.far, outdoor.undistort) == (2.0, 9.0, "optimal")
    assert (outdoor.view_sample, outdoor.masks_dir) == ((0, 18, 1), "bgmtv2")
    assert with_preset(SequenceOptions(dataset_preset="nhr")).masks_dir == "mask"
    assert with_preset(SequenceOptions()) == SequenceOptions()
    assert set(PRESETS) == set(HULL_PRESETS)


@pytest.mark.parametrize(
    "change",
    [
        {"ratio": ()},
        {"max_side": -1},
        {"ratio": (0.0,)},
        {"ratio": (float("nan"), 1.0)},
        {"bounds": ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))},
        {"bounds": ((0.0, 0.0, 0.0), (1.0, float("inf"), 1.0))},
        {"near": 0.0},
        {"far": float("nan")},
        {"near": 2.0, "far": 1.0},
        {"eval_every": 1},
        {"eval_every": -3},
        {"pixel_centre_shift": 3.0},
    ],
)
def test_impossible_options_are_refused(change: dict) -> None:
    with pytest.raises(DataError, match="--" + next(iter(reversed(change))).replace("_", "-")):
        check_options(SequenceOptions(**change), ROOT)
