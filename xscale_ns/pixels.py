"""Choice of where training pixels wait, and what the stores need to know of a view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from core_ns.errors import DataError
from core_ns.images import has_alpha
from xscale_ns.rays import pixel_rays
from xscale_ns.surface import Surface
from xscale_ns.tile_format import ViewSource
from xscale_ns.tile_pool import DecodePool, PixelBatch, RamPixels, TilePool
from xscale_ns.tiles import TileStore


class PixelSource(Protocol):
    """What the three kinds of storage share."""

    def draw(self, n: int, generator: torch.Generator | None = None) -> PixelBatch:
        """``n`` random pixels of all views, each valid pixel equally likely."""
        ...

    def close(self) -> None:
        """Stop threads and release files."""


def own_mask(image: Path) -> Path | None:
    """The photo itself where it has transparency (read from its header), else None."""
    return image if has_alpha(image) else None


def view_sources(dataset: InputDataset, views: Sequence[int]) -> list[ViewSource]:
    """Photo, size, camera and mask of the chosen views of a data set."""
    cameras, masks = dataset.cameras, dataset._dataparser_outputs.mask_filenames
    names = [path.name for path in dataset.image_filenames]
    if len(set(names)) < len(names):
        # Photos of one name in several folders: the whole path tells them apart.
        names = [str(path) for path in dataset.image_filenames]
    sources = []
    for view in views:
        camera = {
            "pose": cameras.camera_to_worlds[view].tolist(),
            **{key: float(getattr(cameras, key)[view]) for key in ("fx", "fy", "cx", "cy")},
            "type": int(cameras.camera_type[view]),
        }
        if cameras.distortion_params is not None:
            camera["distortion"] = cameras.distortion_params[view].tolist()
        sources.append(
            ViewSource(
                name=names[view],
                image=dataset.image_filenames[view],
                width=int(cameras.width[view]),
                height=int(cameras.height[view]),
                camera=camera,
                # A photo with transparency is its own mask.
                mask=masks[view] if masks is not None else own_mask(dataset.image_filenames[view]),
            )
        )
    return sources


def distances(
    surface: Surface, cameras: Cameras, views: Sequence[int]
) -> Callable[[int, Float[Tensor, "n 2"]], Tensor]:
    """A callback for the stores: (position in ``views``, pixel positions) to hit distances, +inf for misses."""

    def cast(index: int, pixels: Float[Tensor, "n 2"]) -> Tensor:
        view = torch.full((len(pixels),), views[index], dtype=torch.int64)
        origins, directions = pixel_rays(cameras, view, pixels)
        return surface.caster.cast(origins.to(surface.device), directions.to(surface.device)).t.cpu()

    return cast


def surface_key(surface: Surface) -> str:
    """Hash of the mesh as it is cast (dataparser space): cached distances are void when it changes."""
    import hashlib

    digest = hashlib.sha256(surface.vertices.cpu().numpy().tobytes())
    digest.update(surface.faces.cpu().numpy().tobytes())
    return digest.hexdigest()


def build_tiles(
    folder: Path, sources: Sequence[ViewSource], surface: Surface, cameras: Cameras, views: Sequence[int],
    *, cached: bool, jobs: int,
) -> TileStore:  # fmt: skip
    """Build or complete the tile store of some views (spec xscale 4.2).

    Raises:
        DataError: an unreadable photo, a full disk, or a folder that cannot be written.
    """
    try:
        return TileStore.build(
            folder,
            sources,
            hits=distances(surface, cameras, views) if cached else None,
            mesh_hash=surface_key(surface) if cached else "",
            jobs=jobs,
        )
    except PermissionError as error:
        raise DataError(
            folder, "", "cannot be written.", "Name another folder with --pipeline.datamanager.tile-folder."
        ) from error


def open_pixels(
    storage: Literal["ram", "tiles", "decode-pool"],
    sources: Sequence[ViewSource],
    folder: Path,
    surface: Surface,
    cameras: Cameras,
    views: Sequence[int],
    *,
    cached: bool,
    pool_tiles: int,
    jobs: int,
    rank: int,
    step: int = 0,
) -> PixelSource:
    """Open a storage. ``cached`` also keeps each pixel centre's hit distance (ram and tiles)."""
    if storage == "ram":
        return RamPixels(sources, hits=distances(surface, cameras, views) if cached else None, jobs=jobs)
    if storage == "decode-pool":
        if cached:
            raise DataError("config", "--pipeline.datamanager.hits", "decode-pool keeps no distances.", "Use tiles.")
        return DecodePool(sources, rank=rank, step=step)
    store = build_tiles(folder, sources, surface, cameras, views, cached=cached, jobs=jobs)
    return TilePool(store, pool_tiles, rank=rank, step=step)
