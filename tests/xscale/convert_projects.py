"""Synthetic Metashape and COLMAP projects: photos of a textured, bumpy square, cast through distorting lenses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial.transform import Rotation

from core_ns.images import write_image
from core_ns.raycast import make_caster
from dataparsers.colmap_model import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_binary
from dataparsers.colmap_text import write_text
from dataparsers.metashape import Similarity
from dataparsers.undistort import Calibration, normalised_from_pixels, project_distorted
from xscale_ns.convert import convert_metashape

LENS = Calibration(
    96, 72, 80.5, 79.0, 49.25, 35.0, skew=-0.3, k1=-0.12, k2=0.03, k3=-0.004, k4=0.001, p1=0.003, p2=-0.002
)
CALIBRATION = (
    "<calibration class='adjusted'><resolution width='96' height='72'/><f>79.0</f><cx>1.25</cx><cy>-1</cy><b1>1.5</b1>"
    "<b2>-0.3</b2><k1>-0.12</k1><k2>0.03</k2><k3>-0.004</k3><k4>0.001</k4><p1>-0.002</p1><p2>0.003</p2></calibration>"
)
# Small enough that the cameras see the mesh with and without it.
NUDGE = Similarity(Rotation.from_euler("xyz", [4, -5, 12], degrees=True).as_matrix(), np.array([0.25, -0.2, 0.1]), 1.08)
FAR = Similarity(NUDGE.rotation, np.array([512345.0, 4100200.0, -33.0]), 3.7)


def numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in np.asarray(values).ravel())


def hills(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A bumpy square of side 4 around the origin, z up."""
    x, y = np.meshgrid(np.linspace(-2, 2, n), np.linspace(-2, 2, n))
    vertices = np.stack([x, y, 0.2 * np.sin(2 * x) * np.cos(3 * y)], axis=-1).reshape(-1, 3)
    a = np.arange(n * n).reshape(n, n)[:-1, :-1].ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + n], -1), np.stack([a + 1, a + n + 1, a + n], -1)])
    return vertices, faces


def texture(points: np.ndarray) -> np.ndarray:
    """Smooth colours of surface points, uint8 [n, 3]."""
    x, y = points[:, 0], points[:, 1]
    rgb = [np.sin(7 * x + 2 * y), np.cos(6 * y - 3 * x), np.sin(5 * x) * np.cos(5 * y)]
    return np.round(128 + 100 * np.stack(rgb, axis=-1)).clip(0, 255).astype(np.uint8)


def picture(calibration: Calibration, w2c: np.ndarray) -> np.ndarray:
    """What a camera sees of the hills (frame: that of `hills`), grey elsewhere."""
    vertices, faces = (torch.from_numpy(array) for array in hills())
    caster = make_caster(vertices.float(), faces, torch.device("cpu"))
    u, v = np.meshgrid(np.arange(calibration.width) + 0.5, np.arange(calibration.height) + 0.5)
    xy = normalised_from_pixels(np.stack([u.ravel(), v.ravel()], axis=-1), calibration)
    directions = np.concatenate([xy, np.ones((len(xy), 1))], axis=-1) @ w2c[:3, :3]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centre = np.broadcast_to(-w2c[:3, :3].T @ w2c[:3, 3], directions.shape)
    hits = caster.cast(torch.from_numpy(centre.copy()).float(), torch.from_numpy(directions).float())
    t = np.where(hits.hit.numpy(), hits.t.numpy(), 0.0)
    rgb = np.where(hits.hit.numpy()[:, None], texture(centre + t[:, None] * directions), 128)
    return rgb.reshape(calibration.height, calibration.width, 3).astype(np.uint8)


def look_at(eye: np.ndarray) -> np.ndarray:
    z = -eye / np.linalg.norm(eye)
    x = np.cross(z, [0.3, 1.0, 0.1])
    x /= np.linalg.norm(x)
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([x, np.cross(z, x), z])
    w2c[:3, 3] = -w2c[:3, :3] @ eye
    return w2c


POSES = [look_at(np.array([1.2 * np.cos(a), 1.2 * np.sin(a), 2.6 + 0.1 * a])) for a in np.arange(6) * 0.9]


def transform_xml(s: Similarity) -> str:
    return (
        f"<transform><rotation>{numbers(s.rotation)}</rotation><translation>{numbers(s.translation)}</translation>"
        f"<scale>{s.scale!r}</scale></transform>"
    )


class Project:
    """A Metashape project on the disk; the hills are in the chunk-local frame."""

    def __init__(self, folder: Path, transform: Similarity | None = None, mesh_frame: str = "local") -> None:
        self.xml, self.images, self.mesh = folder / "cams.xml", folder / "photos", folder / "model.ply"
        self.out = folder / "made" / "scene"
        self.images.mkdir()
        entries = []
        for i, w2c in enumerate(POSES):
            write_image(self.images / f"IMG_{i}.PNG", picture(LENS, w2c))
            matrix = f"<transform>{numbers(np.linalg.inv(w2c))}</transform>"
            entries.append(f"<camera id='{i}' sensor_id='0' label='img_{i}'>{matrix}</camera>")
        self.xml.write_text(
            f"<document><chunk><sensors><sensor id='0' type='frame'>{CALIBRATION}</sensor></sensors>"
            f"<cameras>{''.join(entries)}<camera id='77' sensor_id='0' label='lost'/></cameras>"
            f"{transform_xml(transform) if transform else ''}</chunk></document>"
        )
        vertices, faces = hills()
        if mesh_frame == "world" and transform is not None:
            vertices = transform.scale * vertices @ transform.rotation.T + transform.translation
        trimesh.Trimesh(vertices, faces, process=False).export(self.mesh)
        if np.abs(vertices).max() > 1e3:  # binary ply keeps float32 only
            lines = [f"v {numbers(vertex)}" for vertex in vertices] + [
                f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces
            ]
            self.mesh = folder / "model.obj"
            self.mesh.write_text("\n".join(lines) + "\n")
        self.lines: list[str] = []

    def convert(self, **options):
        return convert_metashape(self.xml, self.images, self.out, say=self.lines.append, **options)


def colmap_project(folder: Path, model: str = "OPENCV", form: str = "bin") -> ColmapModel:
    """The hills seen by COLMAP cameras with id gaps, photos in nested folders."""
    params = {"OPENCV": (80.0, 79.0, 48.5, 35.5, -0.1, 0.02, 0.003, -0.002), "PINHOLE": (80.0, 79.0, 48.5, 35.5)}
    fisheye = (80.0, 79.0, 48.5, 35.5, 0.0, 0.0, 0.0, 0.0)
    cameras = {8: ColmapCamera(8, model, 96, 72, params.get(model, fisheye))}
    lens = Calibration(96, 72, *params["PINHOLE"])
    if model == "OPENCV":
        lens = replace(lens, k1=-0.1, k2=0.02, p1=0.003, p2=-0.002)
    images = {}
    xyz = hills()[0][::7]
    for i, w2c in enumerate(POSES):
        x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
        pixels, _ = project_distorted(xyz, lens, w2c)
        ids = np.arange(len(xyz)) * 3 + 5
        key = 100 - 7 * i
        name = f"strip{i % 2}/view.{i}.png"
        images[key] = ColmapImage(key, (w, x, y, z), tuple(w2c[:3, 3]), 8, name, pixels, ids)
        write_image(folder / "photos" / name, picture(lens, w2c))
    count = len(xyz)
    tracks = tuple(np.zeros((0, 2), np.int64) for _ in range(count))
    points = ColmapPoints(np.arange(count) * 3 + 5, xyz, np.zeros((count, 3), np.uint8), np.zeros(count), tracks)
    result = ColmapModel(folder, cameras, images, points)
    (folder / "sparse" / "0").mkdir(parents=True, exist_ok=True)
    (write_binary if form == "bin" else write_text)(result, folder / "sparse" / "0")
    vertices, faces = hills()
    trimesh.Trimesh(vertices, faces, process=False).export(folder / "meshed-poisson.ply")
    return result
