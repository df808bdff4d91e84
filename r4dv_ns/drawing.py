"""From a nerfstudio camera and world points to a picture: the peel with the viewer's switches (spec r4dv 4.6, 6.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from core_ns.errors import DataError
from r4dv_ns.model_config import R4DVModelConfig
from r4dv_ns.peel import Peeled, peel
from r4dv_ns.viewer import Look

EMPTY = 1e-3
"""Accumulation below which a pixel shows nothing."""


@dataclass(frozen=True)
class Drawing:
    """A pinhole camera to draw."""

    K: Float[Tensor, "3 3"]
    """Pixels; the first pixel's centre is at (0.5, 0.5)."""
    w2c: Float[Tensor, "4 4"]
    """OpenCV world-to-camera."""
    height: int
    width: int
    view: int | None = None
    """The recording's camera that this is, if any: the photo that it took at this moment is the answer."""

    @property
    def centre(self) -> Float[Tensor, "3"]:
        """Camera centre, world."""
        return -self.w2c[:3, :3].T @ self.w2c[:3, 3]


def pinhole(camera: Cameras, any_kind: bool = False) -> Drawing:
    """A nerfstudio camera [1], as points are projected.

    Args:
        any_kind: draw other cameras as the perspective one with their numbers.

    Raises:
        DataError: it is not a perspective camera. (Lens distortion of perspective cameras is ignored: pictures are
            those of the undistorted photos.)
    """
    kind = int(camera.camera_type.reshape(-1)[0])
    if kind != CameraType.PERSPECTIVE.value and not any_kind:
        raise DataError(
            "camera", "camera_type", f"is {CameraType(kind).name.lower()}; points are drawn in perspective cameras.",
            "Choose the camera type perspective.",
        )  # fmt: skip
    c2w = camera.camera_to_worlds.reshape(-1, 3, 4)[0]
    if not c2w.is_floating_point():  # a path whose JSON says 1, not 1.0
        c2w = c2w.float()
    rotation = (c2w[:, :3] * c2w.new_tensor([1.0, -1.0, -1.0])).T
    w2c = torch.eye(4, dtype=c2w.dtype, device=c2w.device)
    w2c[:3, :3], w2c[:3, 3] = rotation, -rotation @ c2w[:, 3]
    K = torch.eye(3, dtype=c2w.dtype, device=c2w.device)
    K[0, 0], K[1, 1] = camera.fx.reshape(-1)[0], camera.fy.reshape(-1)[0]
    K[0, 2], K[1, 2] = camera.cx.reshape(-1)[0], camera.cy.reshape(-1)[0]
    return Drawing(K, w2c, int(camera.height.reshape(-1)[0]), int(camera.width.reshape(-1)[0]))


def draw(
    drawing: Drawing,
    xyz: Float[Tensor, "n 3"],
    radius: Float[Tensor, "n"],
    alpha: Float[Tensor, "n"],
    colour: Float[Tensor, "n c"],
    look: Look,
    config: R4DVModelConfig,
) -> Peeled:
    """Peel world points; colours on black."""
    points_camera = xyz @ drawing.w2c[:3, :3].T + drawing.w2c[:3, 3]
    fx, fy, cx, cy = (float(drawing.K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    seen = peel(
        points_camera, radius * look.radius_scale, alpha, colour, fx=fx, fy=fy, cx=cx, cy=cy, height=drawing.height,
        width=drawing.width, layers=look.layers, min_radius=config.min_pixel_radius, backend=look.backend,  # type: ignore[arg-type]
    )  # fmt: skip
    return solid(seen) if look.solid else seen


def solid(seen: Peeled) -> Peeled:
    """The same without transparency, for `Look.solid`."""
    hit = seen.accumulation > 1e-4
    opaque = seen.color / seen.accumulation.clamp_min(1e-4)[..., None] * hit[..., None]
    return seen._replace(color=opaque, accumulation=hit.to(seen.accumulation))


def crop_alpha(alpha: Float[Tensor, "n"], xyz: Float[Tensor, "n 3"], box: OrientedBox) -> Float[Tensor, "n"]:
    """Opacities with the points outside the crop box taken away."""
    local = (xyz - box.T.to(xyz)) @ box.R.to(xyz)
    return torch.where((local.abs() <= box.S.to(xyz) / 2).all(dim=1), alpha, 0.0)


def distances(drawing: Drawing, seen: Peeled) -> Float[Tensor, "h w 1"]:
    """nerfstudio's ``depth``: distance along the ray, world units; where nothing is, the largest in the picture.

    A depth of zero there would hide the viewer's own objects.
    """
    K, device = drawing.K, drawing.K.device
    x = (torch.arange(drawing.width, device=device) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(drawing.height, device=device) + 0.5 - K[1, 2]) / K[1, 1]
    along = seen.depth * (x.square()[None, :] + y.square()[:, None] + 1).sqrt()
    return torch.where(seen.accumulation > EMPTY, along, along.max())[..., None]
