"""A whole trajectory at once: batches of views, films, the warp beside the view (spec megascenes 7, 8.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8
from PIL import Image

from core_ns.atomic import atomic_path, write_json
from core_ns.images import write_image
from dataparsers.video_write import SMALLEST, write_clip
from megascenes_ns.best_of import best_of
from megascenes_ns.drawing import Settings, View, view_of
from megascenes_ns.networks import Networks
from megascenes_ns.path_file import CameraPath
from megascenes_ns.reference import Reference
from megascenes_ns.viewing import Viewing
from megascenes_ns.warp import Warp, warp_bytes

Array = np.ndarray

QUALITY = 16
"""Constant rate factor of films."""
_WHITE = 255


class Frame(NamedTuple):
    """One view of a trajectory."""

    index: int
    warp: Warp
    samples: UInt8[Array, "n h w 3"]
    """As many as asked for, of seeds that follow one another."""
    best: int
    """The sample nearest to what the warp shows; the first where there is one only."""
    errors: Float64[Array, "n"]
    """Mean squared distance of each sample to the warp; NaN where it shows nothing."""

    @property
    def picture(self) -> UInt8[Array, "h w 3"]:
        """The best sample."""
        return self.samples[self.best]


def views_of_path(reference: Reference, path: CameraPath, scale: float = 1.0) -> list[View]:
    """Views of all cameras of a path, which stands in the reference's frame."""
    return [
        view_of(reference, reference.pose @ _scaled(pose, reference.unit), K, path.width, path.height, scale)
        for pose, K in zip(path.c2w_opencv, path.K, strict=True)
    ]


def _scaled(pose: Float[Array, "4 4"], unit: float) -> Float64[Array, "4 4"]:
    made = np.array(pose, np.float64)
    made[:3, 3] *= unit
    return made


def photo_lens(reference: Reference) -> tuple[float, int, int]:
    """Vertical field of view (degrees), width and height of a reference: for paths that look through its own lens."""
    width, height = reference.prepared.size
    return float(np.degrees(2 * np.arctan(0.5 * height / reference.prepared.K[1, 1]))), width, height


def draw_path(
    viewing: Viewing,
    nets: Networks,
    views: Sequence[View],
    settings: Settings,
    seed: int,
    *,
    samples: int = 1,
    batch: int = 8,
    store: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Frame]:
    """Sample views in batches, the same noise for all of them; what the cache has is not sampled again.

    The batch goes through the UNet twice as large, with and without condition. A view is the same picture as alone
    (`Viewing.outputs`), and enters the same cache.

    Args:
        viewing: of the run.
        nets: the networks.
        views: in the film's order, of one size.
        settings: of the sampler.
        seed: of the first sample's noise; sample j has ``seed + j``.
        samples: of every view, of which the one nearest to the warp is taken.
        batch: pictures at once.
        store: keep pictures in the cache's folder, if it has one.
        progress: called with the number of finished pictures, and of all.

    Yields:
        Frames in order, as soon as they are complete.
    """
    weights, todo = viewing.weights(nets), [(index, sample) for index in range(len(views)) for sample in range(samples)]
    warps: dict[int, Warp] = {}
    done: dict[int, dict[int, UInt8[Array, "h w 3"]]] = {}
    finished = 0
    for first in range(0, len(todo), batch):
        part = todo[first : first + batch]
        new = sorted({index for index, _ in part} - warps.keys())
        warps.update(zip(new, viewing.drawer.warps([views[index] for index in new], nets.device), strict=True))
        keys = [viewing.key(views[index], settings, seed + sample, weights) for index, sample in part]
        known = [viewing.cache.get(key) for key in keys]
        missing = [place for place, picture in enumerate(known) if picture is None]
        if missing:
            drawn = viewing.drawer.pictures(
                nets,
                [views[part[place][0]] for place in missing],
                [warps[part[place][0]] for place in missing],
                settings,
                [seed + part[place][1] for place in missing],
            )
            for place, picture in zip(missing, drawn, strict=True):
                viewing.cache.put(keys[place], picture, store)
                known[place] = picture
        for (index, sample), picture in zip(part, known, strict=True):
            assert picture is not None
            done.setdefault(index, {})[sample] = picture
        finished += len(part)
        if progress is not None:
            progress(finished, len(todo))
        for index in sorted(done):
            if len(done[index]) == samples:
                yield _frame(index, warps.pop(index), done.pop(index))


def _frame(index: int, warp: Warp, pictures: dict[int, UInt8[Array, "h w 3"]]) -> Frame:
    stack = np.stack([pictures[sample] for sample in sorted(pictures)])
    best = best_of(stack, warp.rgb, warp.coverage)
    return Frame(index, warp, stack, best.index if len(stack) > 1 else 0, best.errors)


# ---------------------------------------------------------------------- files


def beside(left: UInt8[Array, "h w 3"], right: UInt8[Array, "h w 3"], gap: int = 4) -> UInt8[Array, "h W 3"]:
    """Two pictures of one height, white between."""
    return np.concatenate([left, np.full((left.shape[0], gap, 3), _WHITE, np.uint8), right], axis=1)


def for_film(picture: UInt8[Array, "h w 3"]) -> UInt8[Array, "H W 3"]:
    """As films want it: repeated to at least 64 pixels, even sides (the last row or column is doubled)."""
    factor = -(-SMALLEST // min(picture.shape[:2]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")


def write_film(file: Path, pictures: Sequence[UInt8[Array, "h w 3"]], fps: float) -> None:
    """An H.264 film of pictures of one size, atomically."""
    frames = [for_film(picture) for picture in pictures]
    height, width = frames[0].shape[:2]
    write_clip(file, frames, (width, height), crf=QUALITY, fps=fps, codec="h264")


def write_gif(file: Path, pictures: Sequence[UInt8[Array, "h w 3"]], fps: float) -> None:
    """An endless GIF, atomically; its pictures last a whole number of hundredths of a second."""
    frames = [Image.fromarray(picture) for picture in pictures]
    with atomic_path(file) as temporary:
        frames[0].save(
            temporary, save_all=True, append_images=frames[1:], duration=max(20, 10 * round(100 / fps)), loop=0
        )


def grid(pictures: UInt8[Array, "n h w 3"]) -> UInt8[Array, "H W 3"]:
    """Samples of a view in a square, row by row, white where there are none."""
    count, height, width, _ = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    page = np.full((rows * height, columns * width, 3), _WHITE, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        page[top : top + height, left : left + width] = picture
    return page


class PathWriter:
    """The files of a rendered trajectory; pictures are written as they come, films at the end.

    reference.png, reference_padded.png, mesh.ply; frames/0000.png, warped/0000.png, with several samples
    per_view_generations/0000.png; view.mp4, view.gif; beside.mp4, beside.gif (warp, view); frames.json.

    Args:
        folder: for them.
        reference: what is seen.
        fps: pictures per second of the films.
    """

    def __init__(self, folder: Path, reference: Reference, fps: float) -> None:
        self.folder, self.fps = folder, fps
        self._pictures: list[UInt8[Array, "h w 3"]] = []
        self._warps: list[UInt8[Array, "h w 3"]] = []
        self._rows: list[dict[str, Any]] = []
        write_image(folder / "reference.png", reference.prepared.image)
        write_image(folder / "reference_padded.png", reference.prepared.padded)
        reference.mesh.write_ply(folder / "mesh.ply")

    def add(self, frame: Frame) -> None:
        """Write a frame's pictures."""
        name = f"{frame.index:04d}.png"
        warp = warp_bytes(frame.warp.rgb)
        write_image(self.folder / "frames" / name, np.asarray(frame.picture))
        write_image(self.folder / "warped" / name, warp)
        if len(frame.samples) > 1:
            write_image(self.folder / "per_view_generations" / name, grid(frame.samples))
        self._pictures.append(frame.picture)
        self._warps.append(warp)
        errors = [None if np.isnan(error) else float(error) for error in frame.errors]
        self._rows.append(
            {
                "frame": frame.index,
                "confidence": float(frame.warp.coverage.mean()),
                "best": frame.best,
                "distance_to_warp": errors,
            }
        )

    def finish(self, about: dict[str, Any]) -> list[Path]:
        """Write the films and frames.json (``about``, then for every frame its confidence: the share that the reference
        shows). Returns the files."""
        pairs = [beside(warp, picture) for warp, picture in zip(self._warps, self._pictures, strict=True)]
        for name, pictures in (("view", self._pictures), ("beside", pairs)):
            write_film(self.folder / f"{name}.mp4", pictures, self.fps)
            write_gif(self.folder / f"{name}.gif", pictures, self.fps)
        write_json(self.folder / "frames.json", {**about, "fps": self.fps, "frames": self._rows})
        return [self.folder / name for name in ("view.mp4", "view.gif", "beside.mp4", "beside.gif", "frames.json")]


def sampled_with(settings: Settings, **changes: Any) -> Settings:
    """Settings with those changes that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})
