"""The model's controls in nerfstudio's viewer: frames, playing, what of the colour is shown (spec r4dv 6.2, 8.5)."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerCheckbox, ViewerDropdown, ViewerNumber, ViewerSlider
from torch import nn

from core_ns.start_camera import StartCamera
from core_ns.viewer_threads import asking_browser

CLOSER = 0.55
"""Distance of the start camera over that of the recording's first."""
MOST_LAYERS = 60
"""Fragments per pixel that the slider offers (spec r4dv 4.6)."""
SOLID_SCALE = 0.85
"""Share of the radius within which the solid view draws a point (spec r4dv 6.2)."""


@dataclass(frozen=True)
class Look:
    """How a picture is drawn; the defaults are what training and the tools see."""

    layers: int | None
    """Fragments blended per pixel; None for all."""
    base: bool = True
    """With the colour blended from the source photos."""
    residual: bool = True
    """With the view-dependent residual (spherical harmonics)."""
    radius_scale: float = 1.0
    solid: bool = False
    """Opaque discs, nearest first, no blending."""
    backend: str = "auto"


def start_between(c2w: Float[np.ndarray, "v 3 4"], middle: Float[np.ndarray, "3"]) -> StartCamera:
    """Where a browser begins: between the first camera of a recording and its neighbour, and closer, so that no picture
    of theirs is in the way.

    Args:
        c2w: OpenGL camera-to-world of the recording's cameras.
        middle: world point to look at, which the mouse turns the camera around.
    """
    offsets = np.asarray(c2w, np.float64)[:, :, 3] - middle
    distances = np.linalg.norm(offsets, axis=1)
    directions = offsets / distances[:, None]
    neighbour = int(np.argsort(directions @ directions[0])[-2]) if len(c2w) > 1 else 0
    between = directions[0] + directions[neighbour]
    if np.linalg.norm(between) < 1e-6:  # the two face each other
        between = directions[0]
    up = np.asarray(c2w, np.float64)[:, :, 1].mean(axis=0)
    position = middle + CLOSER * distances[0] * between / np.linalg.norm(between)
    return StartCamera(position, middle, up / np.linalg.norm(up))


def nearest_frame(times: Items[float], time: float) -> int:
    """The frame whose time is nearest; of two that are as near the first."""
    return int(np.abs(np.asarray(times) - time).argmin())


class Agreed(NamedTuple):
    """What is shown since one of the two sliders was touched last."""

    tools: tuple[float, ...]
    """Where nerfstudio's own slider stands; two places while it is being moved."""
    frame: int
    """Where the frame slider stands."""
    time: float
    """What is drawn."""


class ViewerControls(nn.Module):
    """Frame slider, play, and drawing switches.

    nerfstudio finds the elements as attributes of modules, hence the base class. They speak to the viewer's own render
    threads only (`core_ns.viewer_threads.asking_browser`).

    Args:
        times: of the frames, in [0, 1], rising.
        look: the defaults.
        start: where browsers begin.
    """

    def __init__(self, times: Items[float], look: Look, start: StartCamera) -> None:
        super().__init__()
        self.times, self.default, self.viewer_control = list(times), look, start
        if len(self.times) > 1:
            self.frame = ViewerSlider("Frame", 0, 0, len(self.times) - 1, 1, cb_hook=self._frame_chosen)
            self.play = ViewerCheckbox("Play", False, cb_hook=self._play)
            self.rate = ViewerNumber("Frames per second", 10.0)
            self.loop = ViewerCheckbox("Loop", True)
        self.base = ViewerCheckbox("Photo colour", True, hint="Colour blended from the source photos")
        self.residual = ViewerCheckbox("View-dependent colour", True, hint="Residual of spherical harmonics")
        self.layers = ViewerSlider(
            "Layers", min(look.layers or MOST_LAYERS, MOST_LAYERS), 1, MOST_LAYERS, 1, hint="Points blended per pixel"
        )
        self.radius = ViewerSlider("Radius", 1.0, 0.1, 3.0, 0.05, hint="Multiplies the size of all points")
        self.solid = ViewerCheckbox("Solid points", False, hint="Opaque discs instead of blending")
        # What does not run here must not be chosen: an error would end the browser's render thread.
        cuda = ["triton", "gsplat"] if torch.cuda.is_available() else []
        self.backend = ViewerDropdown("Rasteriser", look.backend, ["auto", "torch", *cuda])
        self._agreed = Agreed((0.0,), 0, self.times[0])
        self._wanted: int | None = None
        """Frame that nerfstudio's slider, touched last, moved ours to."""
        self._choosing = threading.Lock()
        """Between the threads of viser's callbacks alone: what renders is interrupted at any line, and takes none."""
        self._player: threading.Thread | None = None

    # ------------------------------------------------------------------ what the renderer asks

    def in_browser(self) -> bool:
        """Whether a browser's render thread is asking."""
        return asking_browser(self.viewer_control) is not None

    def look(self) -> Look:
        """The settings for the picture being drawn."""
        if not self.in_browser():
            return self.default
        solid = bool(self.solid.value)
        return Look(
            layers=1 if solid else int(self.layers.value),
            base=bool(self.base.value),
            residual=bool(self.residual.value),
            radius_scale=float(self.radius.value) * (SOLID_SCALE if solid else 1.0),
            solid=solid,
            backend=str(self.backend.value),
        )

    def time(self, asked: float) -> float:
        """The time to draw, in [0, 1]: the tools' own, in a browser that of the slider that was touched last."""
        if len(self.times) < 2 or not self.in_browser():
            return asked
        agreed, asked = self._tools(asked)
        if any(abs(asked - known) < 1e-6 for known in agreed.tools):
            frame = int(self.frame.value)
            return agreed.time if frame == agreed.frame else self.times[frame]  # its callback is still to come
        # nerfstudio's slider moved, or its render tab plays a path. Interrupted anywhere here, the next picture finds
        # it so again.
        self._wanted = frame = nearest_frame(self.times, asked)
        if int(self.frame.value) != frame:
            self.frame.value = frame
        self._agreed = Agreed((asked,), frame, asked)
        return asked

    def _tools(self, asked: float) -> tuple[Agreed, float]:
        """What was agreed on, and the tools' time of the same moment: that of the camera may be from before our slider
        was moved, and would move it back."""
        viewer = getattr(self.viewer_control, "viewer", None)
        panel = getattr(viewer, "control_panel", None)
        playing = getattr(getattr(viewer, "render_tab_state", None), "preview_render", False)
        while True:
            agreed = self._agreed
            shown = asked if playing or panel is None else float(panel.time)
            if agreed is self._agreed:
                return agreed, shown

    # ------------------------------------------------------------------ what a browser does

    def _frame_chosen(self, element: ViewerSlider) -> None:
        """Let nerfstudio's slider show about the same time; it has a hundred steps only. Runs on a thread of viser's,
        some time after the slider was set."""
        panel = getattr(getattr(self.viewer_control, "viewer", None), "control_panel", None)
        if panel is None:
            return
        with self._choosing:
            frame = int(element.value)
            if frame == self._wanted:
                return
            self._wanted = None
            time = self.times[frame]
            before, shown = float(panel.time), round(time, 2)
            self._agreed = Agreed((before, shown), frame, time)
            panel.time = shown
            self._agreed = Agreed((shown,), frame, time)

    def _play(self, element: ViewerCheckbox) -> None:
        if element.value and (self._player is None or not self._player.is_alive()):
            self._player = threading.Thread(target=self._advance, name="r4dv player", daemon=True)
            self._player.start()

    def _advance(self) -> None:
        """Step the frame slider until Play is switched off; runs on its own thread."""
        pause: Any = threading.Event()
        while self.play.value:
            pause.wait(1.0 / min(max(float(self.rate.value), 0.1), 120.0))
            if not self.play.value:
                return
            following = int(self.frame.value) + 1
            if following >= len(self.times) and not self.loop.value:
                self.play.value = False
                return
            self.frame.value = following % len(self.times)
