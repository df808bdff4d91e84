"""Which pixels a stage trains on, and which rays go through them.

Positions are drawn from bit masks by rank: number r of the kept pixels is found through prefix counts, so each kept
pixel is equally likely whatever share is kept, and no draw is ever rejected (spec diver 5.3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from diver_ns.grid import Grid
from diver_ns.photos import REDUCTION

BLOCK = 64
"""Pixels per prefix count; a view's mask fills whole blocks, so padding costs at most 63 zero bits."""

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
_COUNT = torch.from_numpy(_BITS.sum(axis=1).astype(np.int64))
_SELECT = torch.from_numpy(np.argsort(1 - _BITS.astype(np.int64), axis=1, kind="stable"))
"""[256, 8]: where the r-th set bit of a byte lies, counted from its most significant bit."""


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose state depends on every number and on their order (numpy's entropy mixing)."""
    words = [number % 2**63 for number in numbers]
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


@dataclass(frozen=True)
class PixelMasks:
    """Kept pixels of all views: one bit per pixel, and one 64-bit prefix count per 64 pixels (2 bits per pixel).

    Pixels are numbered row by row from 0 within their view. 100 views of 800x800 take 16 MB.
    """

    counts: tuple[int, ...]
    """Pixels of each view, kept or not."""
    bits: UInt8[Tensor, "bytes"]
    """Most significant bit first, each view padded with zeros to whole blocks."""
    prefix: Int64[Tensor, "blocks+1"]
    """Kept pixels before each block."""
    starts: Int64[Tensor, "views+1"]
    """First block of each view."""

    @staticmethod
    def of(masks: Iterable[Bool[Tensor, "*pixels"]]) -> PixelMasks:
        """Pack one mask per view, [H, W] or [H * W]; pass a generator to hold only one unpacked mask at a time."""
        counts, parts = [], []
        for mask in masks:
            flat = mask.detach().cpu().numpy().astype(bool).reshape(-1)
            counts.append(len(flat))
            packed = np.packbits(flat)
            parts.append(np.pad(packed, (0, -len(packed) % (BLOCK // 8))))
        bits = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)
        return PixelMasks._counted(tuple(counts), torch.from_numpy(bits))

    @staticmethod
    def full(counts: Iterable[int]) -> PixelMasks:
        """Every pixel of views of so many pixels."""
        return PixelMasks.of(torch.ones(count, dtype=torch.bool) for count in counts)

    @staticmethod
    def _counted(counts: tuple[int, ...], bits: Tensor) -> PixelMasks:
        zero = torch.zeros(1, dtype=torch.int64)
        kept = _COUNT.to(torch.uint8)[bits.int()].view(-1, BLOCK // 8).sum(dim=1)
        blocks = torch.tensor([-(-count // BLOCK) for count in counts], dtype=torch.int64)
        return PixelMasks(
            counts, bits, prefix=torch.cat([zero, kept.cumsum(0)]), starts=torch.cat([zero, blocks.cumsum(0)])
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def kept(self) -> int:
        """Kept pixels of all views."""
        return int(self.prefix[-1])

    @property
    def kept_share(self) -> float:
        """Kept pixels over all pixels, in [0, 1]."""
        return self.kept / max(sum(self.counts), 1)

    def view(self, index: int) -> Bool[Tensor, "pixels"]:
        """One view's mask, row-major."""
        first, last = (int(block) * (BLOCK // 8) for block in self.starts[index : index + 2])
        flat = np.unpackbits(self.bits[first:last].numpy(), count=self.counts[index])
        return torch.from_numpy(flat.astype(bool))

    def intersect(self, other: PixelMasks) -> PixelMasks:
        """Pixels that both keep.

        Raises:
            ValueError: masks of other photos (the numbers of pixels differ).
        """
        if self.counts != other.counts:
            raise ValueError(f"masks of other photos: {self.counts[:3]}... and {other.counts[:3]}... pixels")
        return PixelMasks._counted(self.counts, self.bits & other.bits)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
        """``n`` kept pixels with replacement, each equally likely: (view, pixel number within the view).

        Raises:
            ValueError: no pixel is kept.
        """
        if self.kept == 0:
            raise ValueError("no pixel is kept")
        # Not torch.randint: its 32-bit remainder favours some of 64 million pixels over others by 1.5 %.
        ranks = (torch.rand(n, generator=generator, dtype=torch.float64) * self.kept).long()
        return self.select(ranks.clamp_(max=self.kept - 1))

    def select(self, ranks: Int64[Tensor, "n"]) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
        """The kept pixels of these ranks (0 to `kept` - 1): (view, pixel number within the view)."""
        block = torch.searchsorted(self.prefix, ranks, right=True) - 1
        left = ranks - self.prefix[block]
        octets = self.bits.view(-1, BLOCK // 8)[block].long()
        counts = _COUNT[octets]
        ends = counts.cumsum(dim=1)
        byte = (ends <= left[:, None]).sum(dim=1)
        chosen = byte[:, None]
        left = left - (ends - counts).gather(1, chosen)[:, 0]
        bit = _SELECT[octets.gather(1, chosen)[:, 0], left]
        view = torch.searchsorted(self.starts, block, right=True) - 1
        return view, (block - self.starts[view]) * BLOCK + byte * 8 + bit


# ---------------------------------------------------------------------------------------------------------------- rays


class ViewRays:
    """World rays through continuous pixel positions of a split's cameras."""

    def __init__(self, cameras: Cameras, device: torch.device | str) -> None:
        self.cameras = cameras.to(device)
        distortion = cameras.distortion_params
        undistorted = distortion is None or not bool((distortion != 0).any())
        self.plain = undistorted and bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())

    def __call__(
        self, views: Int64[Tensor, "n"], points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Origins and unit directions, float32, on the device of the cameras.

        Args:
            views: camera of each ray.
            points: (x, y) in pixels of the full photo, (0, 0) being the outer corner of the top-left pixel.
        """
        cameras = self.cameras
        views, points = views.to(cameras.device), points.to(cameras.device)
        if not self.plain:
            rays = cameras.generate_rays(camera_indices=views[:, None], coords=points.flip(-1))
            return rays.origins.float(), rays.directions.float()
        # The numbers of generate_rays, without the two further sets of rays it builds for pixel areas.
        x = (points[:, :1] - cameras.cx[views]) / cameras.fx[views]
        y = (points[:, 1:] - cameras.cy[views]) / cameras.fy[views]
        pose = cameras.camera_to_worlds[views]
        directions = x * pose[:, :, 0] - y * pose[:, :, 1] - pose[:, :, 2]
        # Some parsers leave their intrinsics in float64.
        return pose[:, :, 3].float(), torch.nn.functional.normalize(directions, dim=-1).float()

    def turned(self, views: Int64[Tensor, "n"], directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """These directions if the poses were in OpenCV axes (y down, looking along +z), to recognise that mistake."""
        rotation = self.cameras.camera_to_worlds[views.to(directions.device)][:, :, :3].to(directions.dtype)
        local = torch.einsum("nji,nj->ni", rotation, directions) * directions.new_tensor([1.0, -1.0, -1.0])
        return torch.einsum("nij,nj->ni", rotation, local)


def stage_points(
    pixels: Int64[Tensor, "n"], width: int | Int64[Tensor, "n"], reduced: bool
) -> tuple[Int64[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """(column, row) of numbered pixels of a stage's photos, and their centres in pixels of the full photo.

    A reduced pixel's centre is the middle of its 4x4 box: its ray is that of intrinsics divided by 4.

    Args:
        width: of the stage's photos.
    """
    cells = torch.stack([pixels % width, pixels // width], dim=-1)
    return cells, (cells.float() + 0.5) * (REDUCTION if reduced else 1)


def meets_cube(
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    grid: Grid,
    near: float = 0.0,
    far: float = float("inf"),
) -> Bool[Tensor, "n"]:
    """Whether rays pass through the cube between distances ``near`` (at least 0) and ``far`` (slab test).

    An axis along which a ray does not move is an inside/outside test, never a division (spec diver 3.1).
    """
    start, step = grid.at(1).to_grid(origins, directions)
    still = step == 0
    safe = torch.where(still, torch.ones_like(step), step)
    one, other = -start / safe, (1 - start) / safe
    infinite = torch.full_like(start, float("inf"))
    passing = torch.where((start >= 0) & (start <= 1), infinite, -infinite)
    enter = torch.where(still, -passing, torch.minimum(one, other)).amax(dim=-1).clamp(min=max(near, 0.0))
    leave = torch.where(still, passing, torch.maximum(one, other)).amin(dim=-1).clamp(max=far)
    return enter < leave
