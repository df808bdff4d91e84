"""Take a trained surface out of nerfstudio: a textured GLB, and the mesh for authoring camera paths in Blender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from core_ns.errors import DataError
from xscale_ns.bake import bake, write_mesh_nerfstudio

if TYPE_CHECKING:
    from xscale_ns.model import XScaleModel

Y_UP_FROM_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""glTF's +y is up; the viewer's +z is."""


def bake_run(
    config_file: Path,
    output_dir: Path,
    texture_size: int = 4096,
    padding: int = 4,
    frame: Literal["gltf", "world"] = "gltf",
) -> list[Path]:
    """Write ``textured.glb`` (diffuse colour: mean over viewing directions, mean exposure) and ``mesh_nerfstudio.ply``.

    Args:
        config_file: ``config.yml`` of a run of this package.
        output_dir: folder to write into.
        texture_size: texels per side.
        padding: texels by which chart borders are dilated.
        frame: ``gltf``: viewer axes turned to +y up, unit size; ``world``: the coordinates of the scene's own mesh.

    Returns:
        The written files. The ply is always in dataparser space, which the nerfstudio Blender add-on works in.

    Raises:
        DataError: no such run, not one of this package, or a mesh that cannot be unwrapped.
    """
    from nerfstudio.utils.eval_utils import eval_setup

    from xscale_ns.model import XScaleModel

    if not config_file.is_file():
        raise DataError(config_file, "", "is not a file.", "Name the config.yml of a run.")
    _, pipeline, _, _ = eval_setup(config_file, test_mode="inference")
    model = pipeline.model
    if not isinstance(model, XScaleModel):
        raise DataError(config_file, "method", "is not an xscale-nvs run.", "Name another run.")
    surface = model.surface
    vertices, faces = surface.vertices.cpu().double().numpy(), surface.faces.cpu().numpy()
    manager: Any = pipeline.datamanager
    outputs = manager.train_dataparser_outputs
    transform, scale = outputs.dataparser_transform.double().numpy(), float(outputs.dataparser_scale)
    if frame == "gltf":
        rotation, shift, factor = Y_UP_FROM_Z_UP, np.zeros(3), 1.0
    else:
        rotation, factor = transform[:, :3].T, 1.0 / scale
        shift = -rotation @ transform[:, 3]
    output_dir.mkdir(parents=True, exist_ok=True)
    glb, ply = output_dir / "textured.glb", output_dir / "mesh_nerfstudio.ply"

    def colour_of(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Diffuse colour at points given in the output frame."""
        return diffuse_colour(model, ((points - shift) / factor) @ rotation, normals @ rotation)

    bake(factor * (vertices @ rotation.T) + shift, faces, colour_of, texture_size, glb, padding)
    write_mesh_nerfstudio(ply, vertices, faces)
    return [glb, ply]


@torch.no_grad()
def diffuse_colour(model: XScaleModel, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colour averaged over viewing directions of surface points [N, 3] in dataparser space, display sRGB."""
    device = model.device
    features = model.field.features(torch.from_numpy(points).float().to(device))
    codes: dict[str, Any] = {key: value for key, value in model.field.codes(None).items() if not key.endswith("_index")}
    colour = model.field.head.diffuse(features, torch.from_numpy(normals).float().to(device), **codes)
    return colour.clamp(0, 1).cpu().numpy()
