"""The model's controls in nerfstudio's viewer: frames, playing, what of the colour is shown (spec r4dv 6.2, 8.5)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import (
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerNumber,
    ViewerSlider,
)
from torch import nn

from core_ns.viewer_threads import asking_browser

VISER_SCALE = 10.0
"""nerfstudio multiplies scene coordinates by this for viser."""
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


class StartCamera(ViewerControl):
    """Where every new browser begins, the right way up; by itself it would start near the origin.

    Between two neighbouring cameras of the recording and closer, so that no picture of theirs is in the way.

    Args:
        c2w: OpenGL camera-to-world of the recording's cameras.
        middle: world point to look at, which the mouse turns the camera around.
    """

    def __init__(self, c2w: Float[np.ndarray, "v 3 4"], middle: Float[np.ndarray, "3"]) -> None:
        super().__init__()
        offsets = np.asarray(c2w, np.float64)[:, :, 3] - middle
        distances = np.linalg.norm(offsets, axis=1)
        directions = offsets / distances[:, None]
        neighbour = int(np.argsort(directions @ directions[0])[-2]) if len(c2w) > 1 else 0
        between = directions[0] + directions[neighbour]
        self.middle, self.position = middle, middle + CLOSER * distances[0] * between / np.linalg.norm(between)
        up = np.asarray(c2w, np.float64)[:, :, 1].mean(axis=0)
        self.up = up / np.linalg.norm(up)

    @classmethod
    def at(
        cls, position: Float[np.ndarray, "3"], middle: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"]
    ) -> StartCamera:
        """One that is known: where it stands, the point it looks at, and the unit vector that is up, world."""
        start = cls.__new__(cls)
        ViewerControl.__init__(start)
        start.position, start.middle, start.up = position, middle, up
        return start

    def _setup(self, viewer: Any) -> None:
        super()._setup(viewer)
        viewer.viser_server.scene.set_up_direction(tuple(self.up))
        viewer.viser_server.on_client_connect(self._place)

    def _place(self, client: Any) -> None:
        client.camera.up_direction = self.up
        client.camera.position = VISER_SCALE * self.position
        client.camera.look_at = VISER_SCALE * self.middle


class ViewerControls(nn.Module):
    """Frame slider, play, and drawing switches.

    nerfstudio finds the elements as attributes of modules, hence the base class. They speak to the viewer's own render
    threads only (`core_ns.viewer_threads.asking_browser`).
    """

    def __init__(self, frames: int, look: Look, start: StartCamera) -> None:
        super().__init__()
        self.frames, self.default, self.viewer_control = frames, look, start
        if frames > 1:
            self.frame = ViewerSlider("Frame", 0, 0, frames - 1, 1, cb_hook=self._frame_chosen)
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
        self._time = 0.0
        """Where nerfstudio's own time slider stood when both sliders agreed last."""
        self._following = False
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
        if self.frames < 2 or not self.in_browser():
            return asked
        if abs(asked - self._time) > 1e-6:  # nerfstudio's slider moved, or its render tab plays a path
            self._time = asked
            self._following = True
            try:
                self.frame.value = round(asked * (self.frames - 1))
            finally:
                self._following = False
            return asked
        return int(self.frame.value) / (self.frames - 1)

    # ------------------------------------------------------------------ what a browser does

    def _frame_chosen(self, element: ViewerSlider) -> None:
        """Let nerfstudio's slider show about the same time; it has a hundred steps only."""
        panel = getattr(getattr(self.viewer_control, "viewer", None), "control_panel", None)
        if panel is None or self._following:
            return
        self._time = round(int(element.value) / (self.frames - 1), 2)
        panel.time = self._time

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
            if following >= self.frames and not self.loop.value:
                self.play.value = False
                return
            self.frame.value = following % self.frames
