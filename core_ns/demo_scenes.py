"""Procedural scenes with ground truth: pictures, cameras and the very mesh they were cast against.

``ns-demo-scene --output-dir DIR`` writes a folder that the MVSNet and the nerfstudio readers both understand:

    DIR/images/00000.png   DIR/cams/00000_cam.txt   DIR/scene.ply   DIR/test_views.txt   DIR/transforms.json

In Python a `DemoScene` also answers what a photo cannot: the colour of any surface point and sky direction, and a
picture from any camera at any resolution. The principal point is off-centre on purpose.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float, Float32, Int
from rich.progress import track
from torch import Tensor

from core_ns import demo_meshes
from core_ns.atomic import write_bytes, write_json, write_text
from core_ns.demo_textures import SUN, Looks, MonumentLooks, QuadLooks, dot
from core_ns.errors import DataError
from core_ns.frames import c2w_opengl_from_w2c_opencv
from core_ns.images import write_image
from core_ns.raycast import Hits, RayCaster, interpolate, make_caster

Array = np.ndarray
Variant = Literal["monument", "quad"]

BLOCK = 1 << 17
"""Rays that are shaded at a time: bounds memory at any picture size."""


class Picture(NamedTuple):
    """What `DemoScene.render` returns."""

    rgb: Float32[Tensor, "h w 3"]
    """Mean of the sub-samples, display sRGB in [0, 1]."""
    coverage: Float32[Tensor, "h w"]
    """Share of the sub-samples that hit the mesh."""


@dataclass(frozen=True, eq=False)
class DemoScene:
    """A mesh, its colours and the cameras of its pictures."""

    variant: Variant
    vertices: Float32[Array, "v 3"]
    """World coordinates exactly as in scene.ply."""
    faces: Int[Array, "f 3"]
    normals: Float32[Array, "v 3"]
    """Shading normals."""
    poses: Float[Array, "n 4 4"]
    """World to camera, OpenCV axes."""
    intrinsics: Float[Array, "3 3"]
    width: int
    height: int
    names: tuple[str, ...]
    """Picture names without suffix, in the order of ``poses``."""
    test_names: tuple[str, ...]
    caster: RayCaster
    looks: Looks

    def colour(
        self,
        points_world: Float[Tensor, "n 3"],
        normals: Float[Tensor, "n 3"],
        dirs: Float[Tensor, "n 3"],
    ) -> Float[Tensor, "n 3"]:
        """Display sRGB of surface points with unit shading normals, seen along unit directions (away from the camera).

        Shadows are cast against the mesh. The quad's colour depends on the point alone.
        """
        lit = torch.ones(len(points_world), dtype=torch.bool)
        if self.looks.casts_shadows:
            facing = torch.where(dot(normals, dirs) > 0, -normals, normals)
            index = (facing @ SUN > 0).nonzero()[:, 0]
            # Lifted off the surface: the shading normal leaves the facets by a little.
            start = points_world[index] + 4e-3 * facing[index]
            lit[index] = ~self.caster.cast(start, SUN.expand_as(start).contiguous()).hit
        return self.looks.colour(points_world, normals, dirs, lit)

    def sky(self, dirs: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Display sRGB of the background by unit direction."""
        return self.looks.sky(dirs)

    def cast(self, origins: Float32[Tensor, "n 3"], dirs: Float32[Tensor, "n 3"]) -> Hits:
        """First hits of rays with unit directions on the mesh."""
        return self.caster.cast(origins, dirs)

    def shade(
        self, origins: Float32[Tensor, "n 3"], dirs: Float32[Tensor, "n 3"]
    ) -> tuple[Float32[Tensor, "n 3"], Hits]:
        """What single rays see: surface colour where they hit, sky elsewhere."""
        hits = self.caster.cast(origins, dirs)
        index, missed = hits.hit.nonzero()[:, 0], (~hits.hit).nonzero()[:, 0]
        seen = Hits._make(values[index] for values in hits)
        faces, normals = torch.from_numpy(self.faces), torch.from_numpy(self.normals)
        points = origins[index] + seen.t[:, None] * dirs[index]
        normal = torch.nn.functional.normalize(interpolate(seen, faces, normals).float(), dim=-1)
        rgb = torch.empty_like(dirs)
        rgb[index] = self.colour(points, normal, dirs[index])
        rgb[missed] = self.sky(dirs[missed])
        return rgb, hits

    @torch.no_grad()
    def render(
        self, pose: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"], width: int, height: int, supersample: int = 4
    ) -> Picture:
        """A picture from an OpenCV world-to-camera pose; each pixel is the mean of supersample^2 regular sub-samples.

        The mean is taken of display colours: it is what averaging a renderer's outputs gives, so a perfect model of
        `colour` reproduces the pictures exactly.
        """
        rows_per_block = max(1, BLOCK // (width * supersample**2))
        rgb, coverage = torch.empty(height, width, 3), torch.empty(height, width)
        to_world = torch.from_numpy(pose[:3, :3].T @ np.linalg.inv(intrinsics))
        origin = torch.tensor(-pose[:3, :3].T @ pose[:3, 3], dtype=torch.float32)
        # A pixel's direction is a sum of a column's and a row's part. Sub-samples lead: [i, j, row, column, 3].
        inside = (torch.arange(supersample, dtype=torch.float64) + 0.5) / supersample
        u = inside[:, None] + torch.arange(width)
        by_column = (u[..., None] * to_world[:, 0]).float()[None, :, None]
        for top in range(0, height, rows_per_block):
            v = inside[:, None] + torch.arange(top, min(top + rows_per_block, height))
            by_row = (v[..., None] * to_world[:, 1] + to_world[:, 2]).float()[:, None, :, None]
            dirs = by_row + by_column
            block = dirs.shape[:-1]
            dirs = torch.nn.functional.normalize(dirs, dim=-1).reshape(-1, 3)
            colours, hits = self.shade(origin.expand_as(dirs).contiguous(), dirs)
            rgb[top : top + rows_per_block] = colours.view(*block, 3).mean(dim=(0, 1))
            coverage[top : top + rows_per_block] = hits.hit.float().view(block).mean(dim=(0, 1))
        return Picture(rgb, coverage)


def look_at(eye: Float[Array, "3"], target: Float[Array, "3"]) -> Float[Array, "4 4"]:
    """World to camera (OpenCV axes) of a camera at ``eye`` that looks at ``target`` with world z up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    up = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def orbit(variant: Variant, views: int, seed: int) -> Float[Array, "n 4 4"]:
    """World-to-camera poses round the scene at varying height and distance; neighbours in the list are neighbours
    in angle, and every fourth view of the monument is a close-up."""
    rng = np.random.default_rng([seed, 3])
    poses = []
    for view in range(views):
        golden = (view * 0.6180339887498949) % 1.0
        azimuth = 2 * np.pi * (view + rng.uniform(-0.2, 0.2)) / views + 0.35
        if variant == "quad":
            tilt, distance = np.radians(10 + 35 * golden), 3.0 + 0.5 * ((view * 0.7548776662) % 1.0)
            target = np.array([0.0, 0.0, 0.0])
        else:
            close = view % 4 == 3
            tilt = np.radians(90 - (9 + 44 * golden))
            distance = (2.9 if close else 5.2) + (0.7 if close else 2.0) * ((view * 0.7548776662) % 1.0)
            target = np.array([0.0, 0.0, 1.05 if close else 0.62]) + rng.uniform(-0.12, 0.12, 3)
        flat = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.sin(tilt)
        poses.append(look_at(target + distance * np.array([*flat, np.cos(tilt)]), target))
    return np.stack(poses)


def off_centre_intrinsics(width: int, height: int) -> Float[Array, "3 3"]:
    """Pinhole with fx != fy and a principal point some pixels off the centre.

    The offsets are whole pixels: ns-render interpolate takes 2 cx by 2 cy as its picture size, and video encoders want
    even sizes.
    """
    cx, cy = width / 2 + max(1, round(0.03 * width)), height / 2 - max(1, round(0.02 * height))
    return np.array([[0.98 * width, 0.0, cx], [0.0, 0.99 * width, cy], [0.0, 0.0, 1.0]])


def build_demo_scene(
    *,
    variant: Variant = "monument",
    views: int = 40,
    test_views: int = 6,
    width: int = 320,
    height: int = 240,
    seed: int = 0,
    texture_detail: int = 4096,
    mesh_faces: int = 60000,
) -> DemoScene:
    """A scene in memory; see `make_demo_scene` for the arguments. Nothing is rendered yet.

    Raises:
        ValueError: a count or size is out of range.
    """
    if views < 1 or not 0 <= test_views < views:
        raise ValueError(f"need 0 <= test_views < views, got {test_views} test views of {views}")
    if min(width, height) < 2 or min(texture_detail, mesh_faces) < 1 or seed < 0:
        raise ValueError(
            "width and height need 2 pixels, texture_detail and mesh_faces 1, and seed must not be negative"
        )
    surface = demo_meshes.monument(mesh_faces, seed) if variant == "monument" else demo_meshes.quad(mesh_faces)
    vertices = surface.vertices.astype(np.float32)
    names = tuple(f"{view:05d}" for view in range(views))
    held_out = [int((k + 0.5) * views / test_views) for k in range(test_views)]
    device = torch.device("cpu")
    return DemoScene(
        variant=variant,
        vertices=vertices,
        faces=surface.faces,
        normals=surface.normals.astype(np.float32),
        poses=orbit(variant, views, seed),
        intrinsics=off_centre_intrinsics(width, height),
        width=width,
        height=height,
        names=names,
        test_names=tuple(names[view] for view in held_out),
        caster=make_caster(torch.from_numpy(vertices), torch.from_numpy(surface.faces), device, "auto"),
        looks=(MonumentLooks if variant == "monument" else QuadLooks)(seed, texture_detail),
    )


def make_demo_scene(
    folder: Annotated[Path, tyro.conf.arg(name="output-dir")],
    *,
    variant: Variant = "monument",
    views: int = 40,
    test_views: int = 6,
    width: int = 320,
    height: int = 240,
    seed: int = 0,
    supersample: int = 4,
    texture_detail: int = 4096,
    mesh_faces: int = 60000,
    suffix: Literal["png", "jpg"] = "png",
    transforms: bool = True,
    progress: bool = False,
) -> DemoScene:
    """Render a scene and write its folder; the folder appears complete or not at all.

    Args:
        folder: must not exist yet, or be empty.
        variant: ``monument`` (closed objects, sky, slight gloss) or ``quad`` (a flat textured square).
        views: all pictures, the test views among them.
        test_views: held-out pictures, evenly spread over the orbit and named in test_views.txt.
        width: picture width in pixels.
        height: picture height in pixels.
        seed: of noise, bumps and camera jitter.
        supersample: sub-samples per pixel and axis.
        texture_detail: texels across the plaza (6 units) of the finest texture.
        mesh_faces: about how many triangles the mesh gets.
        suffix: picture format.
        transforms: also write transforms.json (nerfstudio, OpenGL axes).
        progress: show a progress bar.

    Raises:
        DataError: ``folder`` is a file or holds something; nothing is written.
        ValueError: see `build_demo_scene`.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise DataError(folder, "", "is a file, not a folder.", "Choose another output folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(folder, "", "is not empty.", "Choose a new folder, or remove this one first.")
    if supersample < 1:
        raise ValueError(f"supersample must be at least 1, got {supersample}")
    scene = build_demo_scene(
        variant=variant,
        views=views,
        test_views=test_views,
        width=width,
        height=height,
        seed=seed,
        texture_detail=texture_detail,
        mesh_faces=mesh_faces,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        _write(scene, draft, supersample, suffix, transforms, progress)
        draft.chmod(0o777 & ~_umask())  # mkdtemp's folders are private to the user
        os.replace(draft, folder)  # also replaces an empty folder; fails if it has been filled meanwhile
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return scene


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(scene: DemoScene, folder: Path, supersample: int, suffix: str, transforms: bool, progress: bool) -> None:
    def write_view(view: int) -> None:
        picture = scene.render(scene.poses[view], scene.intrinsics, scene.width, scene.height, supersample)
        pixels = (picture.rgb * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        write_image(folder / "images" / f"{scene.names[view]}.{suffix}", pixels)
        text = cam_text(scene.poses[view], scene.intrinsics, scene.vertices)
        write_text(folder / "cams" / f"{scene.names[view]}_cam.txt", text)

    # Whole views side by side, one thread each: torch's own threads wait for each other at every small operation.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(write_view, range(len(scene.names)))
            list(track(done, "Rendering views", len(scene.names), disable=not progress))
    finally:
        torch.set_num_threads(threads)
    write_bytes(folder / "scene.ply", ply_bytes(scene.vertices, scene.faces))
    if scene.test_names:
        write_text(folder / "test_views.txt", "".join(f"{name}\n" for name in scene.test_names))
    if transforms:
        write_json(folder / "transforms.json", transforms_json(scene, suffix))


def cam_text(pose: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"], vertices: Float[Array, "v 3"]) -> str:
    """An MVSNet cam file (spec xscale 2.2) that reads back exactly, with the depth range of the vertices in front."""

    def rows(matrix: Array) -> str:
        return "".join(" ".join(f"{value:.17g}" for value in row) + "\n" for row in matrix)

    depth = vertices @ pose[2, :3] + pose[2, 3]
    depth = depth[depth > 0]
    near, far = (float(depth.min()), float(depth.max())) if len(depth) else (0.1, 10.0)
    sweep = f"{near:.6g} {(far - near) / 191:.6g} 192 {far:.6g}"
    return f"extrinsic\n{rows(pose)}\nintrinsic\n{rows(intrinsics)}\n{sweep}\n"


def ply_bytes(vertices: Float32[Array, "v 3"], faces: Int[Array, "f 3"]) -> bytes:
    """A binary little-endian PLY mesh."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    records = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    records["count"], records["corners"] = 3, faces
    return header.encode("ascii") + vertices.astype("<f4").tobytes() + records.tobytes()


def transforms_json(scene: DemoScene, suffix: str) -> dict[str, object]:
    """The same cameras in nerfstudio's format: camera to world, OpenGL axes, with the split spelled out."""
    files = {name: f"images/{name}.{suffix}" for name in scene.names}
    test = [files[name] for name in scene.test_names]
    content: dict[str, object] = {
        "camera_model": "OPENCV",
        "w": scene.width,
        "h": scene.height,
        "fl_x": scene.intrinsics[0, 0],
        "fl_y": scene.intrinsics[1, 1],
        "cx": scene.intrinsics[0, 2],
        "cy": scene.intrinsics[1, 2],
        "frames": [
            {"file_path": files[name], "transform_matrix": c2w_opengl_from_w2c_opencv(pose).tolist()}
            for name, pose in zip(scene.names, scene.poses, strict=True)
        ],
    }
    if test:
        train = [file for file in files.values() if file not in test]
        content |= {"train_filenames": train, "val_filenames": test, "test_filenames": test}
    return content


def entrypoint() -> None:
    """The ``ns-demo-scene`` command."""
    try:
        scene = tyro.cli(partial(make_demo_scene, progress=True), prog="ns-demo-scene", description=__doc__)
    except ValueError as error:  # DataError included: a sentence for the user, no traceback
        sys.exit(f"ns-demo-scene: {error}")
    print(f"{len(scene.names)} views ({len(scene.test_names)} for testing), mesh of {len(scene.faces)} triangles.")


if __name__ == "__main__":
    entrypoint()
