"""Two time sliders that agree, whoever was touched last and whenever callbacks run (spec r4dv 8.5)."""

from __future__ import annotations

from types import SimpleNamespace

import capture_runs  # noqa: F401 (silences the warnings of nerfstudio's imports)
import numpy as np
import pytest

from core_ns.start_camera import StartCamera
from r4dv_ns.viewer import Look, ViewerControls, nearest_frame, start_between

UNEVEN = [0.0, 0.1, 0.2, 1.0]
"""As of a charge that plays frames 0, 1, 2 and 10."""


@pytest.fixture
def controls(monkeypatch) -> ViewerControls:
    """Controls whose callbacks run when a test says so: `ViewerControls._frame_chosen`."""
    made = ViewerControls(UNEVEN, Look(12), StartCamera(np.ones(3), np.zeros(3), np.array([0.0, 0, 1])))
    panel, tab = SimpleNamespace(time=0.0), SimpleNamespace(preview_render=False)
    made.viewer_control.viewer = SimpleNamespace(control_panel=panel, render_tab_state=tab)  # type: ignore[assignment]
    monkeypatch.setattr(made, "in_browser", lambda: True)
    return made


def panel(controls: ViewerControls) -> SimpleNamespace:
    return controls.viewer_control.viewer.control_panel  # type: ignore[return-value]


def choose(controls: ViewerControls, frame: int) -> None:
    """A click on the frame slider."""
    controls.frame.value = frame
    controls._frame_chosen(controls.frame)


def test_the_frame_slider_shows_its_frame_where_frames_are_not_evenly_apart(controls):
    for frame in (1, 2, 3, 0):
        choose(controls, frame)
        time = controls.time(panel(controls).time)
        assert time == UNEVEN[frame]
        assert nearest_frame(UNEVEN, time) == frame
        assert panel(controls).time == round(UNEVEN[frame], 2)
    panel(controls).time = 0.19
    assert controls.time(0.19) == 0.19
    assert controls.frame.value == 2


def test_a_time_between_frames_stays_where_it_was_put(controls):
    """viser runs the callback of our slider later, on another thread: it must not move nerfstudio's."""
    panel(controls).time = 0.14
    for _ in range(3):
        assert controls.time(float(np.float32(0.14))) == pytest.approx(0.14)
        controls._frame_chosen(controls.frame)
        assert (panel(controls).time, controls.frame.value) == (0.14, 1)
    choose(controls, 2)
    assert controls.time(0.2) == 0.2
    choose(controls, 1)
    assert (controls.time(0.1), panel(controls).time) == (0.1, 0.1)


def test_a_picture_that_was_asked_for_before_the_slider_moved_does_not_move_it_back(controls):
    stale = panel(controls).time
    choose(controls, 2)
    assert controls.time(stale) == UNEVEN[2]
    assert controls.frame.value == 2
    controls.frame.value = 3  # its callback is still to come
    assert controls.time(panel(controls).time) == UNEVEN[3]
    controls._frame_chosen(controls.frame)
    assert controls.time(panel(controls).time) == UNEVEN[3]


def test_while_callbacks_run_nothing_is_moved_back(controls):
    """What a picture finds between any two statements of the callback."""

    class Watched(SimpleNamespace):
        """A panel whose slider is looked at when it is set, before and after."""

        def __setattr__(self, name: str, value: float) -> None:
            before = controls.time(0.0), controls.frame.value
            super().__setattr__(name, value)
            assert before == (controls.time(0.0), controls.frame.value) == (UNEVEN[3], 3)

    controls.viewer_control.viewer.control_panel = Watched()  # type: ignore[assignment]
    vars(controls.viewer_control.viewer.control_panel)["time"] = 0.0
    choose(controls, 3)
    assert panel(controls).time == 1.0


def test_a_path_in_the_render_tab_plays_and_its_time_is_asked_for_once(controls):
    controls.viewer_control.viewer.render_tab_state.preview_render = True
    moved = []
    for asked in (0.03, 0.12, 0.12, 0.7, 1.0):
        assert controls.time(asked) == asked
        moved.append(int(controls.frame.value))
        controls._frame_chosen(controls.frame)
        assert panel(controls).time == 0.0, "else each picture would cause another"
    assert moved == [0, 1, 1, 3, 3]
    controls.viewer_control.viewer.render_tab_state.preview_render = False
    assert controls.time(0.0) == 0.0
    assert controls.frame.value == 0


def test_an_interrupted_picture_is_made_up_for(controls, monkeypatch):
    """nerfstudio's viewer raises at any line of a render thread."""
    panel(controls).time = 0.2
    slider = type(controls.frame)
    kept = slider.value

    def interrupted(element: object, value: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slider, "value", property(kept.fget, interrupted))
    with pytest.raises(KeyboardInterrupt):
        controls.time(0.2)
    monkeypatch.setattr(slider, "value", kept)
    assert controls.time(0.2) == 0.2
    assert controls.frame.value == 2


def test_tools_and_single_frames_get_what_they_ask_for(controls, monkeypatch):
    one = ViewerControls([0.0], Look(12), controls.viewer_control)
    monkeypatch.setattr(one, "in_browser", lambda: True)
    assert one.time(0.7) == 0.7
    monkeypatch.setattr(controls, "in_browser", lambda: False)
    choose(controls, 3)
    assert controls.time(0.4) == 0.4
    assert controls.frame.value == 3


def test_the_start_is_between_two_cameras_and_nearer():
    c2w = np.tile(np.eye(4)[:3], (3, 1, 1))
    c2w[:, :, 3] = [[4, 0, 0], [-4, 0, 0], [0, 4, 0]]
    c2w[:, :, 1] = [0, 0, 1]
    start = start_between(c2w, np.zeros(3))
    np.testing.assert_allclose(start.position, 0.55 * 4 * np.array([1, 1, 0]) / np.sqrt(2))
    np.testing.assert_allclose((start.middle, start.up), [[0, 0, 0], [0, 0, 1]])
    for few in (1, 2):  # one camera; two that face each other
        np.testing.assert_allclose(start_between(c2w[:few], np.zeros(3)).position, [2.2, 0, 0])
