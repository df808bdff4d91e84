"""The controls of an xfactor run in nerfstudio's viewer (spec xfactor 8.2): whose scene, whose motion, from what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from nerfstudio.viewer.viewer_elements import ViewerDropdown, ViewerSlider
from torch import nn

from core_ns.start_camera import StartCamera
from core_ns.viewer_threads import asking_browser
from xfactor_ns.view_options import EXPERIMENTAL, Control

CLICKED = "of the clicked camera"
SAME = "the scene's own"
SLIDER = "position slider"
"""Control of the panel alone: no camera, the place along the pose clip is set by hand."""
_LABELS: dict[str, Control] = {
    f"{mode} (experimental)" if mode in EXPERIMENTAL else mode: mode for mode in get_args(Control)
}


@dataclass(frozen=True)
class Look:
    """What a picture is made of.

    Attributes:
        control: how a camera becomes a latent.
        context: the clip whose scene is drawn, an index; None: the camera says it.
        pose: the clip whose latents move the camera, an index; None: the context clip.
        frames: of the context clip that the renderer sees.
        share: place along the pose clip in [0, 1] instead of the camera; None: the camera.
    """

    control: Control
    context: int | None
    pose: int | None
    frames: int
    share: float | None = None


class ViewerPanel(nn.Module):
    """Clips, control and context of the pictures of a browser.

    nerfstudio finds the elements as attributes of modules, hence the base class. They speak to the viewer's own render
    threads only: ``ns-eval``, ``ns-render`` and evaluation during a watched training keep the config's.

    Args:
        names: ids of the gallery's clips.
        default: what the tools use, and the panel shows first.
        most_frames: frames of the longest clip.
        start: where a browser begins.
        probed: there is a probe, so that the experimental controls can be chosen.
    """

    def __init__(
        self, names: Sequence[str], default: Look, most_frames: int, start: StartCamera, probed: bool = False
    ) -> None:
        super().__init__()
        self.default, self.viewer_control = default, start
        # Numbered: a browser's menu refuses equal entries, and a clip may be called as the first entry is.
        clips = [f"{index}: {name}" for index, name in enumerate(names)]
        self._clips = {entry: index for index, entry in enumerate(clips)}
        # What needs a probe that is not there must not be chosen: an error would end the browser's render thread.
        modes = [label for label, mode in _LABELS.items() if probed or mode not in EXPERIMENTAL]
        label = next(label for label, mode in _LABELS.items() if mode == default.control)
        self.context_clip = ViewerDropdown(
            "Scene", CLICKED if default.context is None else clips[default.context], [CLICKED, *clips],
            hint="The clip whose middle frame (and others) the picture is made from",
        )  # fmt: skip
        self.pose_clip = ViewerDropdown(
            "Motion", SAME if default.pose is None else clips[default.pose], [SAME, *clips],
            hint="The clip whose camera motion the picture follows",
        )  # fmt: skip
        self.control = ViewerDropdown(
            "Control", label, [*modes, SLIDER], hint="How the camera chooses among the motion's frames"
        )
        self.position = ViewerSlider(
            "Position", 0.5, 0.0, 1.0, 0.01, hint="Place along the motion, in time", cb_hook=self._moved
        )
        most = max(most_frames, default.frames)
        self.frames = ViewerSlider(
            "Context frames", default.frames, 1, max(most, 2), 1, hint="Frames of the scene that the renderer sees"
        )

    def _moved(self, element: ViewerSlider) -> None:
        """Who takes the slider means it."""
        if self.control.value != SLIDER:
            self.control.value = SLIDER

    def look(self) -> Look:
        """The settings for the picture that is being drawn."""
        if asking_browser(self.viewer_control) is None:
            return self.default
        chosen = str(self.control.value)
        return Look(
            control=_LABELS.get(chosen, "trajectory"),
            context=self._clips.get(str(self.context_clip.value)),
            pose=self._clips.get(str(self.pose_clip.value)),
            frames=int(self.frames.value),
            share=float(self.position.value) if chosen == SLIDER else None,
        )
