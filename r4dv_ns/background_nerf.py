"""Background points from the depths of a radiance field that was trained on the clean plates (spec r4dv 3.4 a).

ns-train nerfacto --data SEQ easymocap-data --images-dir bkgd/images --masks-dir none --undistort none
ns-r4dv bg-init SEQ --load-config .../config.yml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType

from core_ns.errors import DataError
from core_ns.frames import w2c_opencv_from_c2w_opengl
from dataparsers.point_ply import PointCloud
from r4dv_ns.background_depth import DepthView, confirmations, lonely, neighbours

Array = np.ndarray
OPAQUE = 0.5
"""Accumulation below which a pixel has no depth."""
OTHERS = 4
"""Neighbours that are asked to confirm a depth."""


def depth_points(views: list[DepthView], consistency: bool) -> PointCloud:
    """All pixels' points; with ``consistency`` those that at least two of four neighbours confirm (one, where there are
    only two views), then those that are not alone.

    Returns:
        World of the views.
    """
    xyz, rgb = [], []
    for number, view in enumerate(views):
        keep = view.known
        if consistency:
            others = neighbours(views, number, OTHERS)
            keep = keep & (confirmations(views, number, others) >= min(2, len(others)))
        rows, columns = np.nonzero(keep)
        xyz.append(view.points(rows, columns))
        rgb.append(view.rgb[rows, columns])
    points, colours = np.concatenate(xyz), np.concatenate(rgb)
    kept = ~lonely(points)
    return PointCloud(points[kept], colours[kept])


def field_views(config_file: Path, ratio: float, step: int) -> list[DepthView]:
    """Depths and colours of every ``step``-th training camera of a nerfstudio run, in the world of its files.

    Args:
        config_file: ``config.yml`` of nerfacto or another method with ``depth`` (distance) and ``accumulation``.
        ratio: size of the pictures over that of the photos.
        step: 3 is the original's.

    Raises:
        DataError: no such run, or one that draws no depths.
    """
    if not config_file.is_file():
        raise DataError(config_file, "--load-config", "is not a file.", "Name the config.yml of a run.")

    from nerfstudio.utils.eval_utils import eval_setup  # seconds: only for what is a file

    _, pipeline, _, _ = eval_setup(config_file, test_mode="val")
    manager: Any = pipeline.datamanager
    outputs = manager.train_dataparser_outputs
    cameras: Cameras = manager.train_dataset.cameras
    to_files = _inverse(outputs.dataparser_transform.double().numpy(), float(outputs.dataparser_scale))
    views = []
    for number in range(0, len(cameras), step):
        camera = _pinhole(cameras[number : number + 1], ratio).to(pipeline.device)
        with torch.no_grad():
            drawn = pipeline.model.get_outputs_for_camera(camera)
        missing = [name for name in ("rgb", "depth") if name not in drawn]
        if missing:
            raise DataError(config_file, "method", f"draws no {missing[0]}.", "Name a run of nerfacto.")
        views.append(_depth_view(camera, {name: drawn[name] for name in drawn}, *to_files))
    return views


def _pinhole(camera: Cameras, ratio: float) -> Cameras:
    """The camera without its lens, reduced."""
    size = [max(8, round(int(length) * ratio)) for length in (camera.width, camera.height)]
    scale = size[0] / int(camera.width), size[1] / int(camera.height)
    return Cameras(
        camera.camera_to_worlds, camera.fx * scale[0], camera.fy * scale[1], camera.cx * scale[0],
        camera.cy * scale[1], width=torch.tensor([[size[0]]]), height=torch.tensor([[size[1]]]),
        camera_type=CameraType.PERSPECTIVE, times=camera.times, metadata={"cam_idx": 0},
    )  # fmt: skip


def _inverse(transform: Float[Array, "3 4"], scale: float) -> tuple[Float[Array, "4 4"], float]:
    """(rigid map from nerfstudio's world, divided by its scale, to the files'; that scale)."""
    whole = np.eye(4)
    whole[:3] = transform
    return np.linalg.inv(whole), scale


def _depth_view(camera: Cameras, drawn: dict[str, Any], to_files: Float[Array, "4 4"], scale: float) -> DepthView:
    """A drawn picture as depths along the axis, in the files' world and its unit."""
    c2w = camera.camera_to_worlds[0].double().cpu().numpy()
    pose = np.eye(4)
    pose[:3] = c2w
    pose[:3, 3] /= scale
    K = camera.get_intrinsics_matrices()[0].double().cpu().numpy()
    distance = drawn["depth"][..., 0].double().cpu().numpy() / scale
    height, width = distance.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(K).T
    depth = distance / np.linalg.norm(rays, axis=-1)
    if "accumulation" in drawn:
        depth = np.where(drawn["accumulation"][..., 0].cpu().numpy() > OPAQUE, depth, 0.0)
    rgb = (255 * drawn["rgb"].clamp(0, 1)).round().byte().cpu().numpy()
    return DepthView(K, w2c_opencv_from_c2w_opengl(to_files @ pose), depth, rgb)
