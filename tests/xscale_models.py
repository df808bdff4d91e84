"""Small meshes, cameras and models of xscale-nvs without a scene folder, and configs of short runs with one."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # nerfstudio's own imports warn (viser's websockets, torch.jit); ours must not
    warnings.simplefilter("ignore")
    import nerfstudio.engine.trainer  # noqa: F401
    from nerfstudio.cameras.cameras import Cameras, CameraType
    from nerfstudio.cameras.rays import RayBundle
    from nerfstudio.data.scene_box import SceneBox

    from xscale_ns.config import xscale_nvs_tiny

from core_ns.atomic import write_bytes
from core_ns.demo_scenes import cam_text, look_at, ply_bytes
from core_ns.images import write_image
from xscale_ns.model import XScaleModel, XScaleModelConfig
from xscale_ns.surface import Surface

CPU = torch.device("cpu")

NOISE = (
    # nerfstudio indexes camera tensors with lists, which torch announces to change (handbook 1).
    "ignore:Using a non-tuple sequence:UserWarning",
    # nerfstudio's trainer still builds torch.cuda.amp's scaler.
    r"ignore:`?torch.cuda.amp:FutureWarning",
    # ... and logs losses with their graph attached.
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",
)
"""Warnings of nerfstudio's that every run raises; for ``pytest.mark.filterwarnings``."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=generator(seed)), dim=-1)


# ---------------------------------------------------------------------------------------------------------- meshes


def quad_surface(half: float = 1.0, caster: Any = "embree") -> Surface:
    """The square [-half, half]^2 in the plane z = 0."""
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * half
    return Surface(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), CPU, caster)


def box_surface(lower: tuple = (-1.0, -1.0, -1.0), upper: tuple = (1.0, 1.0, 1.0)) -> Surface:
    """A closed axis-aligned box."""
    low, high = torch.tensor(lower), torch.tensor(upper)
    corners = torch.stack([torch.where(torch.tensor([bool(i & 1), bool(i & 2), bool(i & 4)]), high, low)
                           for i in range(8)])  # fmt: skip
    faces = [[0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4],
             [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5]]  # fmt: skip
    return Surface(corners, torch.tensor(faces), CPU, "embree")


def sphere_mesh(radius: float, subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """An icosphere, float64 vertices and int64 faces."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------- cameras


def camera(
    width: int,
    height: int,
    focal: float = 8.0,
    distance: float = 3.0,
    kind: CameraType = CameraType.PERSPECTIVE,
    principal: tuple[float, float] | None = None,
    **extra: Any,
) -> Cameras:
    """One camera on the +z axis that looks down at the origin."""
    c2w = torch.eye(4)[None, :3].clone()
    c2w[:, 2, 3] = distance
    cx, cy = principal or (width / 2, height / 2)
    values = [torch.tensor([[float(value)]]) for value in (focal, focal, cx, cy)]
    return Cameras(c2w, *values, torch.tensor([[width]]), torch.tensor([[height]]), camera_type=kind, **extra)


def bundle(origins: torch.Tensor, directions: torch.Tensor, views: torch.Tensor | None = None, **metadata: Any):
    """Rays [N, S] (or [N]) as the data manager hands them to the model."""
    shape = origins.shape[:-1]
    index = None
    if views is not None:
        index = views.reshape(-1, *[1] * len(shape)).expand(*shape, 1)
    return RayBundle(origins, directions, torch.ones(*shape, 1), camera_indices=index, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------- models


def make_model(surface: Surface, views: int = 3, finest: int = 64, spread: float = 0.5, **options: Any) -> XScaleModel:
    """A model with random, clearly visible hash features (as after a training) on a surface."""
    settings = {"levels": 3, "features_per_level": 2, "log2_table": 10, "eval_sub_samples": 1, **options}
    torch.manual_seed(1)
    model = XScaleModelConfig(**settings).setup(
        scene_box=SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])),
        num_train_data=views,
        metadata={
            "surface": surface,
            "finest_resolution": finest,
            "train_names": [f"view{index}" for index in range(views)],
        },
        device="cpu",
        grad_scaler=None,
    )
    with torch.no_grad():
        for table in model.field.grid.tables:
            table.uniform_(-spread, spread)
    return model


# ------------------------------------------------------------------------------------------------------------ scenes


def write_mvsnet_scene(
    folder: Path,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    pictures: list[np.ndarray],
    mesh: tuple[np.ndarray, np.ndarray],
    test: tuple[int, ...] = (),
) -> Path:
    """Photos, cameras, mesh and split lists in MVSNet layout."""
    vertices, faces = mesh
    for view, (pose, picture) in enumerate(zip(poses, pictures, strict=True)):
        write_image(folder / "images" / f"{view:05d}.png", picture)
        write_bytes(folder / "cams" / f"{view:05d}_cam.txt", cam_text(pose, intrinsics, vertices).encode())
    write_bytes(folder / "mesh.ply", ply_bytes(vertices.astype(np.float32), faces))
    if test:
        (folder / "test_views.txt").write_text("".join(f"{view:05d}\n" for view in test))
    return folder


def ring_of_cameras(count: int, distance: float, lowest: float = -0.7, highest: float = 0.8) -> np.ndarray:
    """World-to-camera poses around the origin on a spiral over the latitudes, OpenCV axes."""
    poses = []
    for view in range(count):
        z = lowest + (highest - lowest) * ((view * 0.6180339887498949) % 1.0)
        angle, flat = 2 * math.pi * view / count, math.sqrt(1 - z * z)
        eye = distance * np.array([flat * math.cos(angle), flat * math.sin(angle), z])
        poses.append(look_at(eye, np.zeros(3)))
    return np.stack(poses)


def short_run(scene: Path, output_dir: Path, steps: int, rays: int = 512, **model: Any) -> Any:
    """A config of xscale-nvs-tiny on the CPU without viewer; model options as keywords."""
    config: Any = copy.deepcopy(xscale_nvs_tiny.config)
    config.output_dir, config.data, config.timestamp = output_dir, scene, "run"
    config.experiment_name = scene.name
    config.vis, config.machine.device_type, config.max_num_iterations = "tensorboard", "cpu", steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = 10**6
    config.steps_per_eval_all_images = 10**6
    config.logging.steps_per_log = 10**6
    config.logging.local_writer.enable = False
    manager = config.pipeline.datamanager
    manager.data, manager.train_num_rays_per_batch, manager.storage = scene, rays, "ram"
    for name, value in model.items():
        setattr(config.pipeline.model, name, value)
    return config


def open_trainer(config: Any, local_rank: int = 0, world_size: int = 1) -> Any:
    """A trainer that is set up; call ``train`` on it."""
    trainer = config.setup(local_rank=local_rank, world_size=world_size)
    trainer.setup()
    return trainer
