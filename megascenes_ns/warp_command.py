"""``ns-megascenes warp``: what a photo and its depth alone show along a path, without a network (spec megascenes 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import numpy as np
import tyro
from jaxtyping import Float32, UInt8

from core_ns.errors import DataError
from megascenes_ns.path_command import PathOptions
from megascenes_ns.path_file import read_path, write_path
from megascenes_ns.paths import vertical_fov

Array = np.ndarray

MOST_PIXELS = 1_000_000_000
"""Of all pictures of a path together: they are kept as bytes for the films."""
TOGETHER = 16
"""Cameras rendered at once."""


@dataclass
class WarpCommand:
    """Draw a photo's depth mesh along a camera path: to check depth, lens and path before a network sees them."""

    photo: tyro.conf.Positional[Path]
    """The reference."""
    output_dir: Path
    """Folder for warps/*.png (coverage in alpha), warps.gif, warps.mp4, mesh.ply, path.json; new or empty."""
    depth: str = ""
    """Its depth: a .npy file, a COLMAP depth map (.bin), a folder with a transformers depth model, or plane. Empty:
    PHOTO.npy beside the photo."""
    fov: str = "auto"
    """Its lens. auto: EXIF data, else 55 degrees; 60 or 60h: horizontal; 75d: diagonal; legacy80: the original's."""
    path: tyro.conf.OmitArgPrefixes[PathOptions] = field(default_factory=PathOptions)
    """Which path."""
    camera_path: Optional[Path] = None
    """Follow this path of ns-megascenes path or of the viewer instead; size and lens are its."""
    canvas: int = 256
    """Longest side that the photo is reduced to."""
    fps: float = 10.0
    """Pictures per second."""
    samples_per_pixel: int = 4
    """1, 4, 9 or 16; 4 darkens borders of holes as the original does."""
    backend: Literal["auto", "cast", "torch"] = "auto"
    """What draws: the ray caster, or the torch rasteriser."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the rasteriser computes."""

    def main(self) -> int:
        """Draw, write, print how much of each picture the photo covers.

        Raises:
            DataError: unusable input or options, or a folder that holds something; nothing is written.
        """
        out = self.output_dir
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(out, "folder", "is not empty.", "Name a new folder.")
        if not 16 <= self.canvas <= 2048 or not 0 < self.fps < 1e4:
            raise DataError("options", "--canvas, --fps", "are out of range.", "Give 16 to 2048, and above 0.")
        asked = None if self.camera_path is None else read_path(self.camera_path)
        if asked is not None and self.path != PathOptions():
            raise DataError("options", "--camera-path", "is a path, and another is asked for.", "Name one of them.")
        import torch

        from megascenes_ns.reference import reference_of_photo
        from megascenes_ns.warp import render_many, sample_offsets

        try:
            sample_offsets(self.samples_per_pixel)
        except ValueError as error:
            raise DataError("options", "--samples-per-pixel", f"{error}.", "Give 1 or 4.") from error
        if self.device == "cuda" and not torch.cuda.is_available():
            raise DataError("options", "--device", "is cuda, and there is none.", "Leave it at auto.")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        reference = reference_of_photo(self.photo, self.depth, self.fov, self.canvas)
        width, height = reference.prepared.size
        path = asked or self.path.lay(vertical_fov(reference.prepared.K[1, 1], height), width, height, self.fps)
        pixels = len(path.fov) * path.width * path.height
        if pixels > MOST_PIXELS:
            problem = f"has {pixels / 1e6:.0f} megapixels in all."
            raise DataError(self.camera_path or "options", "path", problem, "Make it shorter or its pictures smaller.")
        pictures, shares = [], np.zeros(0)
        for start in range(0, len(path.fov), TOGETHER):
            part = slice(start, start + TOGETHER)
            warps = render_many(
                reference.mesh, path.K[part], path.c2w_opencv[part], path.height, path.width, self.samples_per_pixel,
                self.backend, device=device,
            )  # fmt: skip
            pictures += write_warps(out / "warps", warps.rgb, warps.coverage, start)
            shares = np.append(shares, warps.coverage.mean(axis=(1, 2)))
        write_film(out, "warps", np.stack(pictures), path.fps)
        reference.mesh.write_ply(out / "mesh.ply")
        write_path(out / "path.json", path)
        kept = len(reference.mesh.faces) / reference.mesh.cells
        print(f"Photo: {width}x{height}, depth from {reference.depth.source}, {kept:.1%} of the mesh kept")
        print(f"Coverage: {shares.min():.1%} to {shares.max():.1%}, mean {shares.mean():.1%}, {len(shares)} pictures")
        print(f"Written: {out}/warps, warps.gif, warps.mp4, mesh.ply, path.json")
        return 0


def write_warps(
    folder: Path, rgb: Float32[Array, "n h w 3"], coverage: Float32[Array, "n h w"], first: int = 0
) -> list[UInt8[Array, "h w 3"]]:
    """Write warps as PNG with coverage in alpha, each file atomically.

    Args:
        folder: made if need be.
        rgb, coverage: in [0, 1].
        first: number of the first in its file's name.

    Returns:
        The colours, in bytes.
    """
    from core_ns.images import write_image
    from megascenes_ns.warp import warp_bytes

    pictures = list(warp_bytes(rgb))
    alpha = np.rint(coverage * 255).astype(np.uint8)
    for index, (picture, share) in enumerate(zip(pictures, alpha, strict=True), first):
        write_image(folder / f"{index:05d}.png", np.concatenate([picture, share[..., None]], axis=2))
    return pictures


def write_film(folder: Path, name: str, pictures: UInt8[Array, "n h w 3"], fps: float) -> None:
    """Write NAME.gif, and NAME.mp4 for any player; tiny pictures are enlarged for the latter, odd ones cropped."""
    from PIL import Image

    from core_ns.atomic import atomic_path
    from dataparsers.video_write import SMALLEST, write_clip

    frames = [Image.fromarray(picture) for picture in pictures]
    duration = max(20, 10 * round(100 / fps))  # whole hundredths of a second; browsers slow down below two
    with atomic_path(folder / f"{name}.gif") as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=duration, loop=0)
    times = -(-SMALLEST // min(pictures.shape[1:3])) if min(pictures.shape[1:3]) < SMALLEST else 1
    large = pictures.repeat(times, axis=1).repeat(times, axis=2)
    height, width = (side - side % 2 for side in large.shape[1:3])
    write_clip(folder / f"{name}.mp4", large[:, :height, :width], (width, height), crf=18, fps=fps, codec="h264")
