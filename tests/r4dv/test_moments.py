"""Which frame a camera's time asks for, in every selection of frames (acceptance A12)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from capture_runs import NOISE
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from torch import nn

from r4dv_ns.pictures import PictureModel

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


class Numbered(PictureModel):
    """Its pictures show the number of their frame."""

    def __init__(self, times: list[float], mode: str = "nearest") -> None:
        nn.Module.__init__(self)
        self.times, self.controls = times, SimpleNamespace(time=lambda asked: asked)  # type: ignore[assignment]
        self.config = SimpleNamespace(time_mode=mode, background=0.0)  # type: ignore[assignment]

    def _picture(self, camera: Any, frame: int, time: float, box: Any) -> dict[str, torch.Tensor]:
        assert time == self.times[frame], "points are moved to the frame's own time"
        return {"rgb": torch.full((1, 1, 3), float(frame))}

    def subject_box(self, batch: Any) -> None:
        return None

    def has_masks(self) -> bool:
        return False

    def at(self, time: float | None) -> float:
        camera = Cameras(
            torch.eye(4)[None, :3], 9.0, 9.0, 4.0, 4.0, times=None if time is None else torch.tensor([[time]])
        )
        return float(self.get_outputs_for_camera(camera)["rgb"][0, 0, 0])


@pytest.mark.parametrize("mode", ["nearest", "blend"])
@given(begin=st.integers(0, 6), end=st.integers(1, 7), step=st.integers(1, 4))
def test_the_time_of_every_frame_of_every_slice(mode: str, begin: int, end: int, step: int) -> None:
    """A12: frame(t(i)) = i for all begin, end, step; t = 1 is the last frame; cameras hold float32."""
    chosen = range(7)[begin:end:step]
    if not chosen:
        return
    times = [(i - chosen[0]) / max(chosen[-1] - chosen[0], 1) for i in chosen]
    model = Numbered(times, mode)
    assert [model.at(time) for time in times] == pytest.approx(range(len(chosen)), abs=1e-4)
    assert model.at(1.0) == len(chosen) - 1
    assert model.at(None) == 0
    if mode == "nearest":
        assert [model.at(time) for time in np.round(times, 2)] == list(range(len(chosen))), "the viewer's slider"


def test_between_frames_that_are_not_even() -> None:
    times = [0.0, 0.25, 1.0]
    nearest, blend = Numbered(times), Numbered(times, "blend")
    assert [nearest.at(time) for time in (0.5, 0.7, -3.0, 7.0)] == [1, 2, 0, 2]
    assert [blend.at(time) for time in (0.625, 0.125, -3.0, 7.0)] == [1.5, 0.5, 0, 2]
    assert Numbered([0.0], "blend").at(0.5) == 0
