"""Where every new browser of nerfstudio's viewer begins; by itself it would start near the origin."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from nerfstudio.viewer.viewer_elements import ViewerControl

VISER_SCALE = 10.0
"""nerfstudio multiplies scene coordinates by this for viser."""


class StartCamera(ViewerControl):
    """A pose for each browser that connects, the right way up.

    Args:
        position: of the camera, world.
        middle: world point to look at, which the mouse turns the camera around.
        up: unit vector, world.
    """

    def __init__(
        self, position: Float[np.ndarray, "3"], middle: Float[np.ndarray, "3"], up: Float[np.ndarray, "3"]
    ) -> None:
        super().__init__()
        self.position, self.middle, self.up = position, middle, up

    @classmethod
    def of(cls, c2w: Float[np.ndarray, "3 4"], distance: float) -> StartCamera:
        """At a camera-to-world matrix (OpenGL axes), turning about the point ``distance`` ahead of it."""
        c2w = np.asarray(c2w, np.float64)
        return cls(c2w[:3, 3], c2w[:3, 3] - distance * c2w[:3, 2], c2w[:3, 1])

    def _setup(self, viewer: Any) -> None:
        super()._setup(viewer)
        viewer.viser_server.scene.set_up_direction(tuple(self.up))
        viewer.viser_server.on_client_connect(self._place)

    def _place(self, client: Any) -> None:
        client.camera.up_direction = self.up
        client.camera.position = VISER_SCALE * self.position
        client.camera.look_at = VISER_SCALE * self.middle
