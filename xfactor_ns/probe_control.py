"""Latents for cameras that no frame has, through a probe: modes ``regress`` and ``invert`` (spec xfactor 8.3, 8.4).

Beyond the paper, hence experimental: how far such latents are from those the encoder would give stands in the probe's
own report.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core_ns.frames import OPENGL_FROM_OPENCV, w2c_opencv_from_c2w_opengl
from xfactor_ns.probe import Probe, load_probe
from xfactor_ns.probe_fit import encoder_fingerprint
from xfactor_ns.transfer import Net


def probe_pose(relative: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """What a probe calls a pose: world-to-camera, OpenCV axes, in the world that is the reference camera.

    Args:
        relative: camera-to-reference, OpenGL axes (`camera_control.PosePath`).
    """
    return w2c_opencv_from_c2w_opengl(relative) @ OPENGL_FROM_OPENCV


class ProbeControl:
    """A probe's file, opened when the first picture needs it; not a module, so that no checkpoint holds it.

    Args:
        file: of ``ns-xfactor probe``.
        steps: Adam steps of ``invert``.
    """

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        self._opened: tuple[tuple, Probe] | None = None

    def latent(self, net: Net, version: tuple, relative: Float[np.ndarray, "4 4"], invert: bool) -> Float[Tensor, "p"]:
        """The latent of a camera.

        Args:
            net: the networks.
            version: of their weights (`LatentBank.version`).
            relative: the camera as the reference camera sees it, in units of the clip's path.
            invert: improve the regression's latent until the probe reads the camera from it.

        Raises:
            DataError: the file is no probe, or one of other weights.
        """
        device = next(net.pose_encoder.parameters()).device
        opened = self._opened
        if opened is None or opened[0] != version:
            probe, _ = load_probe(self.file, encoder=encoder_fingerprint(net))
            opened = version, probe.to(device)
            self._opened = opened
        pose = torch.from_numpy(probe_pose(relative)).float().to(device)[None]
        probe = opened[1]
        with torch.no_grad():
            return (probe.invert(pose, self.steps) if invert else probe.latents(pose))[0]
