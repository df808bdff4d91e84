"""The controls of a megascenes run in nerfstudio's viewer (spec megascenes 8.3, 12): whose scene, sampled how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerCheckbox, ViewerNumber, ViewerSlider, ViewerText
from torch import nn

from core_ns.start_camera import StartCamera
from core_ns.viewer_threads import asking_browser

MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Look:
    """What a browser asks of its pictures.

    Attributes:
        steps: of the finished picture.
        guidance: weight of guidance.
        seed: of the noise.
        locked: the same noise for every camera; else every camera has its own.
        scale: multiplies translations.
    """

    steps: int
    guidance: float
    seed: int
    locked: bool = True
    scale: float = 1.0


@dataclass(frozen=True)
class Picks:
    """What the panel does to the viewing when a reference is picked; each may raise nothing."""

    pair: Callable[[int], None]
    """Show a pair's reference."""
    photo: Callable[[Path], None]
    """Show a photo."""
    view: Callable[[], None]
    """Make the view that is shown the reference."""


class ViewerPanel(nn.Module):
    """Reference, seed, scale, steps and guidance of a browser's pictures.

    nerfstudio finds the elements as attributes of modules, hence the base class. They speak to the viewer's own render
    threads only: ``ns-eval``, ``ns-render`` and evaluation during a watched training keep the config's.

    Args:
        default: what the tools use, and the panel shows first.
        first: pair that is shown first.
        picks: what picking does.
        start: where a browser begins.
    """

    def __init__(self, default: Look, first: int, picks: Picks, start: StartCamera) -> None:
        super().__init__()
        self.default, self.viewer_control = default, start
        self._picks = picks
        self.pair = ViewerNumber(
            "Reference pair",
            first,
            cb_hook=self._pair,
            hint="Number of the pair whose first photo the views are made of",
        )
        self.photo = ViewerText(
            "Reference photo", "", cb_hook=self._photo,
            hint="Or the path of any photo; its depth is PHOTO.npy beside it, or the run's option",
        )  # fmt: skip
        self.use_view = ViewerButton("Use this view as reference", cb_hook=self._view)
        self.scale = ViewerSlider(
            "Translation scale", default.scale, min(0.1, default.scale), max(4.0, default.scale), 0.05,
            hint="Multiplies how far the camera has moved",
        )  # fmt: skip
        self.steps = ViewerSlider(
            "Steps", default.steps, 1, max(50, default.steps), 1, hint="Of the sampler, for the finished picture"
        )
        self.guidance = ViewerSlider(
            "Guidance",
            default.guidance,
            0.0,
            max(10.0, default.guidance),
            0.1,
            hint="Of the pose and the warp; 1: none",
        )
        self.seed = ViewerNumber("Seed", default.seed, hint="Of the noise that pictures are sampled from")
        self.lock = ViewerCheckbox("Lock seed", default.locked, hint="The same noise for every camera: less flicker")

    def _pair(self, element: Any) -> None:
        self._picks.pair(int(element.value))

    def _photo(self, element: Any) -> None:
        """Called at every key: only what names a file is meant."""
        path = Path(str(element.value).strip()).expanduser()
        if str(element.value).strip() and path.is_file():
            self._picks.photo(path)

    def _view(self, element: Any) -> None:
        del element
        self._picks.view()

    def browser(self) -> Any:
        """The viewer's render thread that is the caller, None for a tool."""
        return asking_browser(self.viewer_control)

    def look(self, browser: Any) -> Look:
        """The settings for the picture that is being drawn; ``browser`` as of `browser`."""
        if browser is None:
            return self.default
        return Look(
            steps=max(1, int(self.steps.value)),
            guidance=max(0.0, float(self.guidance.value)),
            seed=min(max(0, int(self.seed.value)), MOST_SEED),
            locked=bool(self.lock.value),
            scale=max(1e-3, float(self.scale.value)),
        )
