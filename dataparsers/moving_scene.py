"""A generated multi-view video with known truth, in EasyMocap layout: what r4dv's tests, demo and README train on.

    DIR/images/CAM/FRAME.jpg   DIR/masks/CAM/FRAME.png   DIR/intri.yml   DIR/extri.yml   DIR/truth.json
    DIR/bkgd/CAM.jpg

A toy juggler (or a patchwork ball) moves in a plain studio, or in a furnished room of which there are clean plates
(``bkgd``: what each camera sees when nobody is there); cameras stand on two rings around it. Pictures are ray cast
with several samples per pixel; masks hold the share of the samples that hit the subject, 0 to 255. In Python a
`MovingScene` also gives the centroid and the box of the subject at any time, and the true picture of any camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from core_ns.atomic import write_json
from core_ns.demo_scenes import look_at
from core_ns.demo_textures import Noise
from core_ns.frames import project
from core_ns.images import write_image
from dataparsers.easymocap import CameraModel, write_cameras
from dataparsers.moving_figure import Ball, Juggler, Subject
from dataparsers.moving_studio import Background, PosedSubject, lamp_directions, world_vertices
from dataparsers.object_scene import new_folder
from dataparsers.undistort import Calibration, normalised_from_pixels

Array = np.ndarray
SubjectName = Literal["juggler", "ball"]

BLOCK = 1 << 17
"""Rays that are shaded at a time: bounds memory at any picture size."""
DISTANCE = 2.9
"""Of the cameras from what they look at, metres."""
ELEVATIONS = (7.0, 34.0)
"""Degrees above the subject's middle, of the two rings."""
ROOM_ELEVATIONS = (6.0, 9.0)
"""The same in the room: rings so near each other that what a held-out camera of one sees, cameras of the other see."""
MAX_FRAMES = 60
FILL = 0.92
"""Share of the picture's half width or height that the subject reaches at some time in some camera."""


class Picture(NamedTuple):
    """What `MovingScene.render` returns."""

    rgb: Float32[Tensor, "h w 3"]
    """Mean of the sub-samples, display sRGB in [0, 1], background included."""
    coverage: Float32[Tensor, "h w"]
    """Share of the sub-samples that hit the subject."""


@dataclass(frozen=True, eq=False)
class MovingScene:
    """A subject in a studio, the times of its frames and the cameras of its pictures. World z is up, metres."""

    subject: Subject
    frames: int
    cameras: dict[str, CameraModel]
    background: Background
    noise: Noise

    def time(self, frame: int) -> float:
        """frame / max(frames - 1, 1), in [0, 1]."""
        return frame / max(self.frames - 1, 1)

    def centroid(self, frame: int) -> Float[Array, "3"]:
        """World centre of the subject's volume; of the ball: its centre."""
        return self.subject.centroid(self.time(frame))

    def vertices(self, frame: int) -> Float[Array, "v 3"]:
        """World mesh vertices of all parts."""
        return world_vertices(self.subject.parts, self.subject.pose(self.time(frame)))

    def bounds(self, frame: int | None = None) -> Float[Array, "2 3"]:
        """Exact box of the subject (lower and upper corner) at one frame, or over all of them."""
        clouds = [self.vertices(each) for each in (range(self.frames) if frame is None else [frame])]
        lows, highs = [cloud.min(axis=0) for cloud in clouds], [cloud.max(axis=0) for cloud in clouds]
        return np.stack([np.min(lows, axis=0), np.max(highs, axis=0)])

    def posed(self, frame: int) -> PosedSubject:
        """The mesh of a frame, ready to be cast against; several pictures of a frame can share it."""
        return PosedSubject.at(self.subject.parts, self.subject.pose(self.time(frame)), self.noise)

    @torch.no_grad()
    def render(
        self,
        lens: Calibration,
        w2c: Float[Array, "4 4"],
        frame: int,
        supersample: int = 3,
        posed: PosedSubject | None = None,
    ) -> Picture:
        """The true picture of an OpenCV camera, lens distortion included; supersample^2 regular samples a pixel.

        The mean is taken of display colours, as averaging a renderer's outputs does.

        Args:
            lens: size, intrinsics and distortion in pixels (`CameraModel.lens`).
            w2c: world to camera.
            frame: which one.
            supersample: sub-samples per pixel and axis.
            posed: `posed` of the same frame, to save building it again.
        """
        posed = posed or self.posed(frame)
        samples = supersample**2
        inside = (np.arange(supersample) + 0.5) / supersample
        origin = torch.tensor(-w2c[:3, :3].T @ w2c[:3, 3], dtype=torch.float32)
        rgb, coverage = torch.empty(lens.height, lens.width, 3), torch.empty(lens.height, lens.width)
        lamps = lamp_directions(supersample)
        rows_per_block = max(1, BLOCK // (lens.width * samples))
        for top in range(0, lens.height, rows_per_block):
            rows = np.arange(top, min(top + rows_per_block, lens.height))
            # Sub-samples lead: [i, j, row, column].
            v, u = np.broadcast_arrays(
                inside[:, None, None, None] + rows[:, None], inside[None, :, None, None] + np.arange(lens.width)
            )
            plane = normalised_from_pixels(np.stack([u.ravel(), v.ravel()], axis=-1), lens)
            world = (plane @ w2c[:2, :3] + w2c[2, :3]).astype(np.float32)
            dirs = functional.normalize(torch.from_numpy(world), dim=-1)
            lamp = lamps.repeat_interleave(len(rows) * lens.width, dim=0)
            colour, hit = posed.shade(origin.expand_as(dirs).contiguous(), dirs, lamp, self.background)
            block, part = (samples, len(rows), lens.width), slice(top, top + len(rows))
            rgb[part] = colour.view(*block, 3).mean(dim=0)
            coverage[part] = hit.float().view(block).mean(dim=0)
        return Picture(rgb, coverage)

    def plate(self, lens: Calibration, w2c: Float[Array, "4 4"], supersample: int = 3) -> Float32[Tensor, "h w 3"]:
        """The true picture of a camera when nobody is there; arguments as of `render`."""
        return self.render(lens, w2c, 0, supersample, PosedSubject.absent(self.noise)).rgb


def build_moving_scene(
    *,
    cameras: int = 12,
    frames: int = 8,
    size: tuple[int, int] = (256, 320),
    seed: int = 0,
    subject: SubjectName = "juggler",
    background: Background = "studio",
    distorted: bool = False,
) -> MovingScene:
    """A scene in memory; see `make_moving_scene` for the arguments. Nothing is rendered yet.

    Raises:
        ValueError: a count or size is out of range.
    """
    if cameras < 1 or not 1 <= frames <= MAX_FRAMES or min(size) < 8 or seed < 0:
        given = f"{cameras}, {frames}, {size}, {seed}"
        raise ValueError(f"need cameras >= 1, 1 <= frames <= {MAX_FRAMES}, sizes >= 8, seed >= 0, got {given}")
    figure = Juggler() if subject == "juggler" else Ball()
    elevations = ROOM_ELEVATIONS if background == "room" else ELEVATIONS
    rig = two_rings(figure, cameras, size, seed, distorted, elevations)
    return MovingScene(figure, frames, rig, background, Noise(seed))


def two_rings(
    subject: Subject,
    cameras: int,
    size: tuple[int, int],
    seed: int,
    distorted: bool,
    elevations: tuple[float, float] = ELEVATIONS,
) -> dict[str, CameraModel]:
    """Cameras ``00``, ``01``, ... evenly round the subject, on a low and a high ring by turns, each with its own
    focal length and principal point; with ``distorted`` also with its own barrel distortion. The subject stays inside
    all pictures at all times."""
    rng = np.random.default_rng([seed, 4])
    width, height = size
    middle, digits = np.array(subject.middle), max(2, len(str(cameras - 1)))
    cloud = np.concatenate([world_vertices(subject.parts, subject.pose(time))[::5] for time in np.linspace(0, 1, 13)])
    poses, centres, focal = [], [], np.inf
    for number in range(cameras):
        azimuth = 2 * np.pi * (number + 0.15 * rng.uniform(-1, 1)) / cameras + 0.2
        elevation = np.radians(elevations[number % 2] + rng.uniform(-2, 2))
        flat = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.cos(elevation)
        eye = middle + DISTANCE * rng.uniform(0.98, 1.03) * np.array([*flat, np.sin(elevation)])
        poses.append(look_at(eye, middle + rng.uniform(-0.02, 0.02, 3)))
        centres.append(np.array(size) * (0.5 + rng.uniform(-0.01, 0.01, 2)))
        seen, _ = project(cloud, np.eye(3), poses[-1])
        room = np.minimum(centres[-1], size - centres[-1])
        focal = min(focal, float((room / np.abs(seen).max(axis=0)).min()))
    result = {}
    for number, (w2c, (cx, cy)) in enumerate(zip(poses, centres, strict=True)):
        own = FILL * focal * rng.uniform(0.98, 1.0)
        barrel = np.array([rng.uniform(-0.16, -0.08), rng.uniform(0.01, 0.04), *rng.uniform(-2e-3, 2e-3, 2), 0.0])
        name = f"{number:0{digits}d}"
        result[name] = CameraModel(
            name=name,
            K=np.array([[own, 0.0, cx], [0.0, 1.01 * own, cy], [0.0, 0.0, 1.0]]),
            D=barrel if distorted else np.zeros(5),
            width=width,
            height=height,
            R=w2c[:3, :3],
            T=w2c[:3, 3],
        )
    return result


def image_centroid(weights: Float[Array, "h w"]) -> Float[Array, "2"]:
    """Weighted mean pixel position (u, v), pixel centres at +0.5: where a mask or an accumulation image lies.

    Raises:
        ValueError: no weight at all.
    """
    weights = np.asarray(weights, dtype=np.float64)
    total = weights.sum()
    if not total > 0:
        raise ValueError("the image has no weight")
    columns, rows = (np.arange(length) + 0.5 for length in weights.shape[::-1])
    return np.array([weights.sum(axis=0) @ columns, weights.sum(axis=1) @ rows]) / total


def make_moving_scene(
    folder: Path,
    cameras: int = 12,
    frames: int = 8,
    size: tuple[int, int] = (256, 320),
    seed: int = 0,
    *,
    subject: SubjectName = "juggler",
    background: Background = "studio",
    distorted: bool = False,
    supersample: int = 3,
    progress: bool = False,
) -> MovingScene:
    """Render a sequence and write its folder, which appears whole or not at all.

    ``truth.json`` holds the world centroid and box of every frame, metres.

    Args:
        folder: must not exist yet, or be empty.
        cameras: on two rings by turns.
        frames: 1 to 60; the same motion, sampled evenly.
        size: (width, height) in pixels.
        seed: of cloth and of the cameras' small differences.
        subject: ``juggler`` or ``ball``.
        background: ``studio`` (floor with shadow, backdrop), ``black``, or ``room`` (furnished, with clean plates).
        distorted: lenses with barrel distortion, written to intri.yml.
        supersample: sub-samples per pixel and axis.
        progress: show a progress bar.

    Raises:
        DataError: ``folder`` is a file or holds something; nothing is written.
        ValueError: see `build_moving_scene`; nothing is written.
    """
    if supersample < 1:
        raise ValueError(f"supersample must be at least 1, got {supersample}")
    scene = build_moving_scene(
        cameras=cameras,
        frames=frames,
        size=size,
        seed=seed,
        subject=subject,
        background=background,
        distorted=distorted,
    )
    with new_folder(Path(folder)) as draft, _one_thread_each() as pool:
        write_cameras(draft, scene.cameras)
        truth = [
            {"centroid": scene.centroid(frame).tolist(), "bounds": scene.bounds(frame).tolist()}
            for frame in range(frames)
        ]
        write_json(draft / "truth.json", {"frames": truth, "bounds": scene.bounds().tolist()})

        def write_plate(camera: CameraModel) -> None:
            write_image(
                draft / "bkgd" / f"{camera.name}.jpg", _bytes(scene.plate(camera.lens, camera.w2c, supersample))
            )

        if background == "room":
            list(pool.map(write_plate, scene.cameras.values()))
        for frame in track(range(frames), "Rendering frames", disable=not progress):
            posed = scene.posed(frame)

            def write_view(camera: CameraModel, frame: int = frame, posed: PosedSubject = posed) -> None:
                picture = scene.render(camera.lens, camera.w2c, frame, supersample, posed)
                for kind, suffix, values in (("images", "jpg", picture.rgb), ("masks", "png", picture.coverage)):
                    write_image(draft / kind / camera.name / f"{frame:06d}.{suffix}", _bytes(values))

            list(pool.map(write_view, scene.cameras.values()))
    return scene


def _bytes(values: Float32[Tensor, "*n"]) -> Array:
    """[0, 1] as uint8."""
    return (values * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """A pool with a picture per thread: torch's own threads wait for each other at every small operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
