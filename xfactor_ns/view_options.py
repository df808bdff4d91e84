"""How pictures for the viewer and the ``ns-*`` tools are made; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

Control = Literal["trajectory", "nearest", "blend", "regress", "invert"]
"""From a camera to a pose latent (spec xfactor 8.3)."""
EXPERIMENTAL: tuple[Control, ...] = ("regress", "invert")
"""Beyond the paper; they need a probe (``ns-xfactor probe``)."""


@dataclass
class ViewOptions:
    """What ``ns-render``, ``ns-viewer`` and ``ns-eval`` draw; the viewer's panel overrides it in that browser."""

    control: Control = "trajectory"
    """trajectory: the camera is moved onto the pose clip's path, latents of the two neighbouring frames are blended
    linearly; nearest: latent of the nearest frame; blend: of the nearest frames, by distance; regress, invert
    (experimental): from a probe."""
    context_clip: str = ""
    """Id of the clip whose scene is drawn. Empty: the clip of the clicked camera, of --camera-idx, or the nearest."""
    pose_clip: str = ""
    """Id of the clip whose latents move the camera. Empty: the context clip itself."""
    context_frames: int = 0
    """Frames of the context clip that the renderer sees; 0: as many as in training."""
    neighbours: int = 3
    """Frames that blend takes."""
    rotation_weight: float = 1.0
    """Units of translation that one radian counts for, when cameras are compared. The unit is the median distance of
    a clip's cameras to its reference."""
    invert_steps: int = 20
    """Adam steps of invert."""
    probe: Optional[Path] = None
    """File of ``ns-xfactor probe``, for regress and invert. Default: probe.safetensors in the run's folder."""
    batch: int = 8
    """Frames that go through the networks at once."""

    def check(self, probe_found: bool = False) -> None:
        """Refuse numbers that cannot be meant.

        Args:
            probe_found: the run has a probe of its own.

        Raises:
            DataError: one of them.
        """
        from core_ns.errors import DataError

        def refuse(field: str, problem: str, remedy: str) -> None:
            raise DataError("config", f"pipeline.model.view.{field}", problem, remedy)

        if self.context_frames < 0:
            refuse("context-frames", f"is {self.context_frames}.", "Use 1 or more; 0 takes as many as in training.")
        if self.neighbours < 1:
            refuse("neighbours", f"is {self.neighbours}.", "Use 1 or more.")
        if not 0.0 <= self.rotation_weight < float("inf"):
            refuse("rotation-weight", f"is {self.rotation_weight}.", "Use 0 or more.")
        if self.batch < 1:
            refuse("batch", f"is {self.batch}.", "Use 1 or more.")
        if self.invert_steps < 0:
            refuse("invert-steps", f"is {self.invert_steps}.", "Use 0 or more.")
        if self.control in EXPERIMENTAL and self.probe is None and not probe_found:
            refuse("probe", f"is not set, which {self.control} needs.", "Make one: ns-xfactor probe.")
