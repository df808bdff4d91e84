"""The quality benchmark's data sets and scores, the same for all methods, and its floor. Protocol: ../quality.py."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from core_ns.frames import transform_points
from core_ns.images import read_image
from core_ns.metrics import LpipsOrNothing, image_metrics, masked_psnr, psnr
from core_ns.raycast import Hits, interpolate
from dataparsers.mesh import load_mesh
from dataparsers.mvsnet_parser import MvsnetDataParserConfig
from xscale_ns.rays import pixel_rays
from xscale_ns.surface import Surface

Render = Callable[[int, Tensor], Tensor]
"""(held-out view, pixel positions (x, y) [h, w, 2]) -> rgb [h, w, 3]."""
FLOOR = "vertex-colours"
GRID_PIXELS = 6000


@dataclass
class Scene:
    """One data set with everything that scoring needs; cameras and mesh in the MVSNet reader's frame."""

    name: str
    folder: Path
    train: DataparserOutputs
    test: DataparserOutputs
    surface: Surface
    truths: list[Tensor]
    """Held-out photos, [h, w, 3] in [0, 1]."""
    step: int
    """Every how many rows and columns the grid has a pixel."""
    window_views: list[int]
    """Held-out views whose middle is rendered at the last mark."""


def load_scene(name: str, folder: Path, window_pixels: int) -> Scene:
    """Read a scene folder in the MVSNet layout."""
    parser = MvsnetDataParserConfig(data=folder).setup()
    train, test = (parser.get_dataparser_outputs(split=split) for split in ("train", "test"))
    mesh = load_mesh(Path(test.metadata["mesh_path"]))
    space = test.metadata["mesh_transform"]
    vertices = transform_points(mesh.vertices, np.array(space["transform"]), space["scale"])
    surface = Surface(torch.from_numpy(vertices), torch.from_numpy(mesh.faces), torch.device("cpu"))
    truths = [photo(path) for path in test.image_filenames]
    pixels = sum(truth.shape[0] * truth.shape[1] for truth in truths)
    step = max(1, round(math.sqrt(pixels / GRID_PIXELS)))
    count = min(max(1, round(4 * window_pixels * len(truths) / pixels)), len(truths))
    chosen = [int((k + 0.5) * len(truths) / count) for k in range(count)]
    return Scene(name, folder, train, test, surface, truths, step, chosen)


def photo(path: Path) -> Tensor:
    """[h, w, 3] in [0, 1]."""
    return torch.from_numpy(read_image(path)[0]).float() / 255.0


def pixel_centres(height: int, width: int, step: int = 1) -> Tensor:
    """Positions (x, y) of every ``step``-th pixel, [h, w, 2], starting in the middle of the first cell."""
    rows, columns = torch.arange(step // 2, height, step), torch.arange(step // 2, width, step)
    y, x = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1)


def cast(scene: Scene, cameras: Cameras, view: int, pixels: Tensor) -> tuple[Tensor, Hits]:
    """Origins and first hits of the rays through pixels [..., 2], flattened."""
    points = pixels.reshape(-1, 2)
    origins, directions = pixel_rays(cameras, torch.full((len(points),), view), points)
    return origins, scene.surface.caster.cast(origins.contiguous(), directions)


def view_metrics(scene: Scene, render: Render, view: int, centres: Tensor, metrics: Callable[..., Any]) -> Any:
    """``metrics(rgb, photo, hit mask)`` of some pixels [h, w, 2] of a held-out view."""
    truth = scene.truths[view][centres[..., 1].long(), centres[..., 0].long()]
    mask = cast(scene, scene.test.cameras, view, centres)[1].hit.reshape(centres.shape[:2])
    return metrics(render(view, centres).clamp(0, 1), truth, mask)


def score(scene: Scene, render: Render, last: bool) -> dict[str, Any]:
    """PSNR on the grid of every held-out view; at the last mark also all metrics of the windows."""
    start, rows = time.perf_counter(), []
    for view, truth in enumerate(scene.truths):
        centres = pixel_centres(truth.shape[0], truth.shape[1], scene.step)
        rows.append(view_metrics(scene, render, view, centres, two_psnr))
    result: dict[str, Any] = {**mean_of(rows), "eval_seconds": time.perf_counter() - start}
    if last:
        start, lpips, rows = time.perf_counter(), LpipsOrNothing(), []
        for view in scene.window_views:
            height, width = scene.truths[view].shape[:2]
            window = slice(height // 4, height // 4 + height // 2), slice(width // 4, width // 4 + width // 2)
            centres = pixel_centres(height, width)[window]
            rows.append(view_metrics(scene, render, view, centres, partial(image_metrics, lpips=lpips)))
        names = [scene.test.metadata["split_names"][view] for view in scene.window_views]
        result["windows"] = {"views": names, **mean_of(rows), "eval_seconds": time.perf_counter() - start}
    return result


def two_psnr(rgb: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Any]:
    """All pixels', and the hits'."""
    return {"psnr": psnr(rgb, truth), "psnr_masked": masked_psnr(rgb, truth, mask)}


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of every metric over the views that define it."""
    keys = sorted({key for row in rows for key, value in row.items() if value is not None})
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    return {key: sum(some) / len(some) for key, some in values.items()}


def write_transforms(scene: Scene, folder: Path) -> Path:
    """transforms.json of the reader's cameras in its frame with its split; photos by absolute path."""
    frames, files = [], {}
    for split, outputs in (("train", scene.train), ("test", scene.test)):
        files[split] = [str(path.resolve()) for path in outputs.image_filenames]
        cameras = outputs.cameras
        for index, file in enumerate(files[split]):
            pose = torch.eye(4, dtype=torch.float64)
            pose[:3] = cameras.camera_to_worlds[index].double()
            numbers = {"fl_x": cameras.fx, "fl_y": cameras.fy, "cx": cameras.cx, "cy": cameras.cy}
            numbers |= {"w": cameras.width, "h": cameras.height}
            frame = {key: value[index].item() for key, value in numbers.items()}
            frames.append({"file_path": file, "transform_matrix": pose.tolist(), **frame})
    content = {"frames": frames, "train_filenames": files["train"]}
    content |= {"val_filenames": files["test"], "test_filenames": files["test"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def vertex_colours(scene: Scene) -> dict[str, Any]:
    """Score the floor; its time is what the projection takes."""
    begin = time.perf_counter()
    vertices = scene.surface.vertices
    total, count = torch.zeros_like(vertices), torch.zeros(len(vertices), 1)
    missed_total, missed_count = torch.zeros(3), 0
    cameras = scene.train.cameras
    for view, path in enumerate(scene.train.image_filenames):
        image = photo(path)
        index, pixels = visible_vertices(scene, cameras, view, image)
        total[index] += bilinear(image, pixels)
        count[index] += 1
        centres = pixel_centres(image.shape[0], image.shape[1], 4)
        missed = centres.reshape(-1, 2)[~cast(scene, cameras, view, centres)[1].hit].long()
        missed_total += image[missed[:, 1], missed[:, 0]].sum(dim=0)
        missed_count += len(missed)
    seen = count[:, 0] > 0
    colours = total / count.clamp_min(1)
    colours[~seen] = colours[seen].mean(dim=0)
    background = missed_total / max(missed_count, 1)
    seconds = time.perf_counter() - begin

    def render(view: int, centres: Tensor) -> Tensor:
        _, hits = cast(scene, scene.test.cameras, view, centres)
        rgb = interpolate(hits, scene.surface.faces, colours).float()
        return torch.where(hits.hit[:, None], rgb, background).reshape(*centres.shape[:2], 3)

    scores = score(scene, render, last=True)
    print(f"{scene.name}: {FLOOR}, {seconds:.1f} s, {scores['psnr_masked']:.2f} dB masked", flush=True)
    share = float(seen.float().mean())
    return {"seen_vertices": share, "marks": [{"mark": seconds, "seconds": seconds, "steps": 0, **scores}]}


def visible_vertices(scene: Scene, cameras: Cameras, view: int, image: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the vertices inside the picture and not hidden, and their pixel positions (x, y)."""
    c2w = cameras.camera_to_worlds[view]
    local = (scene.surface.vertices - c2w[:, 3]) @ c2w[:, :3]
    depth = -local[:, 2]
    x = cameras.cx[view] + cameras.fx[view] * local[:, 0] / depth
    y = cameras.cy[view] - cameras.fy[view] * local[:, 1] / depth
    height, width = image.shape[:2]
    inside = (depth > 1e-3) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = inside.nonzero()[:, 0]
    pixels = torch.stack([x, y], dim=-1)[index]
    origins, hits = cast(scene, cameras, view, pixels)
    distance = (scene.surface.vertices[index] - origins).norm(dim=-1)
    # A ray may slip past the vertex it aims at, over the silhouette: a miss hides nothing.
    shown = hits.t >= distance - 2e-3 * scene.surface.extent
    return index[shown], pixels[shown]


def bilinear(image: Tensor, pixels: Tensor) -> Tensor:
    """Colours [n, 3] at continuous positions (x, y); pixel centres lie at halves."""
    size = torch.tensor([image.shape[1], image.shape[0]])
    places = (2 * pixels / size - 1)[None, None]
    planes = image.permute(2, 0, 1)[None]
    sampled = torch.nn.functional.grid_sample(planes, places, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T
