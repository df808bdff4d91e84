"""Generated clips in pairs: the same camera path in two worlds, so that a transferred path has a ground truth.

    DIR/path00_a/images/000.png   DIR/path00_b/images/000.png   ...   DIR/splits.json   DIR/truth.json
    DIR/path00_a/transforms.json  (rooms only: the true cameras)

``planes``: squares cut from smooth random pictures, shifted from frame to frame: the two-dimensional world of spec
xfactor 12, check 16, as clips. ``room``: a ray-cast room with boxes, of which every pair has another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional

from core_ns.atomic import write_json
from core_ns.errors import DataError
from core_ns.images import write_image
from dataparsers.demo_room import Room, room_path
from dataparsers.object_scene import new_folder
from dataparsers.video_write import write_clip

Array = np.ndarray
Kind = Literal["planes", "room"]

SQUARE, TEXTURE, REACH = 32, 44, 6
"""Of check 16: side of the squares, of the pictures they are cut from, and largest shift, pixels."""
COARSE, FINE, FINE_WEIGHT = 3, 6, 0.35
FPS = 10.0
_WAVES = 3
_VIDEO_CRF = 12


def make_demo_clips(
    folder: Path,
    *,
    kind: Kind = "planes",
    clips: int = 8,
    frames: int = 30,
    size: int = 64,
    seed: int = 0,
    video: bool = False,
) -> list[tuple[str, str]]:
    """Write clips, two of every camera path; the last pair is held out. The folder appears complete or not at all.

    Args:
        folder: must not exist yet, or be empty.
        kind: see the module docstring.
        clips: even number of clips.
        frames: of each.
        size: side of the square frames, pixels.
        seed: of worlds and paths.
        video: write .mp4 files (H.265, without poses) instead of folders of PNGs; sizes are even and 64 or more then.

    Returns:
        The pairs: frame k of both clips is seen from the same place.

    Raises:
        DataError: numbers that make no clips, or the folder holds something.
    """
    if clips < 2 or clips % 2 or frames < 2 or size < 8 or seed < 0:
        problem = f"are {clips}, {frames}, {size}, {seed}."
        remedy = "Give an even number of clips, 2 frames or more, 8 pixels or more, and a seed from 0 on."
        raise DataError("options", "clips, frames, size, seed", problem, remedy)
    if video and (size < 64 or size % 2):
        raise DataError("options", "size", f"{size} cannot be encoded.", "Videos need an even size from 64 on.")
    pairs = [(f"path{number:02d}_a", f"path{number:02d}_b") for number in range(clips // 2)]
    with new_folder(folder) as draft:
        truth: dict[str, Any] = {"kind": kind, "pairs": [list(pair) for pair in pairs]}
        make_path = shift_path if kind == "planes" else room_path
        paths = [make_path(frames, seed, number) for number in range(len(pairs))]
        truth |= {f"path{number:02d}": path.tolist() for number, path in enumerate(paths)}

        def make(clip: int) -> None:
            name, path = pairs[clip // 2][clip % 2], paths[clip // 2]
            world = (
                plane_pictures(path, size, seed, clip) if kind == "planes" else Room(seed, clip).pictures(path, size)
            )
            _write(draft, name, world, size, video)
            if kind == "room" and not video:
                write_json(draft / name / "transforms.json", transforms(path, size))

        with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:
            list(pool.map(make, range(clips)))
        train = [name for pair in pairs[:-1] for name in pair]
        if train:
            write_json(draft / "splits.json", {"train": train, "test": list(pairs[-1])})
        write_json(draft / "truth.json", truth)
    return pairs


def _write(folder: Path, name: str, pictures: Iterator[UInt8[Array, "s s 3"]], size: int, video: bool) -> None:
    if video:
        write_clip(folder / f"{name}.mp4", pictures, (size, size), crf=_VIDEO_CRF, fps=FPS)
        return
    for number, picture in enumerate(pictures):
        write_image(folder / name / "images" / f"{number:03d}.png", picture)


def transforms(path: Float[Array, "f 4 4"], size: int) -> dict[str, Any]:
    """nerfstudio's ``transforms.json`` of a path's cameras (OpenGL camera to world)."""
    focal = 0.5 * size / math.tan(math.radians(Room.FOV / 2))
    return {
        "camera_model": "OPENCV", "w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2,
        "frames": [
            {"file_path": f"images/{number:03d}.png", "transform_matrix": pose.tolist()}
            for number, pose in enumerate(path)
        ],
    }  # fmt: skip


def shift_path(frames: int, seed: int, number: int) -> Float[Array, "f 2"]:
    """A smooth path of shifts (right, down) that fills [-1, 1]² (1 is `REACH` pixels of a 32 pixel square)."""
    rng = np.random.default_rng([seed, number, 0])
    time = np.linspace(0.0, 2 * np.pi, frames, endpoint=False)[:, None, None]
    waves = np.arange(1, _WAVES + 1)
    phases, sizes = rng.uniform(0, 2 * np.pi, (2, _WAVES)), rng.uniform(0.3, 1.0, (2, _WAVES))
    path = (sizes * np.sin(waves * time + phases)).sum(axis=2)
    low, high = path.min(axis=0), path.max(axis=0)
    return 2.0 * (path - low) / np.maximum(high - low, 1e-9) - 1.0


def plane_pictures(path: Float[Array, "f 2"], size: int, seed: int, world: int) -> Iterator[UInt8[Array, "s s 3"]]:
    """The frames of a path over one picture: smooth noise (3x3 and 6x6 values, bicubic), squares cut from it.

    Shifts are of whole pixels for frames of 32 pixels, and of the same share of the picture for others.
    """
    side = round(size * TEXTURE / SQUARE)
    picture = smooth_picture(np.random.default_rng([seed, world, 1]), side)
    reach = (side - size) // 2
    for right, down in path:
        left, top = (reach + round(float(each) * reach) for each in (right, down))
        yield picture[top : top + size, left : left + size]


def smooth_picture(rng: np.random.Generator, side: int) -> UInt8[Array, "side side 3"]:
    """tanh of coarse and fine noise, enlarged (spec xfactor 12, check 16), as a display sRGB picture."""
    noise = torch.zeros(1, 3, side, side)
    for cells, weight in ((COARSE, 1.0), (FINE, FINE_WEIGHT)):
        values = torch.from_numpy(rng.normal(size=(1, 3, cells, cells))).float()
        noise = noise + weight * functional.interpolate(values, (side, side), mode="bicubic", align_corners=False)
    unit = 0.5 + 0.5 * torch.tanh(0.9 * noise)
    return (unit[0].permute(1, 2, 0) * 255.0).round().byte().numpy()
