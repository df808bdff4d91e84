"""Warps of listed pairs: looked up in the cache, or drawn from the reference's depth (spec megascenes 2.5, 3.2-3.4).

Who makes warps and who trains on them ask the same object, so they agree about names, sizes and units.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from core_ns.atomic import write_json
from core_ns.errors import DataError
from dataparsers.megascenes_paths import relative_path
from dataparsers.megascenes_table import Pair
from megascenes_ns.depth import Depth, pose_unit
from megascenes_ns.depth_cache import FORMAT, SETTINGS, read_settings, refuse_other
from megascenes_ns.mesh import DepthMesh
from megascenes_ns.pose_vector import relative_pose
from megascenes_ns.prepare import Prepared, fitted_size, scaled_intrinsics
from megascenes_ns.warp import Backend, RenderOptions, Warp, render_many
from megascenes_ns.warp_cache import CachedWarp, WarpCache, WarpSettings, pair_key

Array = np.ndarray


_relative = lru_cache(maxsize=4096)(relative_path)
"""The pairs of a reference come one after the other."""


class PairWarps:
    """Warps of one kind in one folder.

    Args:
        cache: where they are.
        settings: what made them, or would.
        backend: see `warp.render`.
        device: see `warp.render`.
    """

    def __init__(
        self, cache: WarpCache, settings: WarpSettings, *, backend: Backend = "auto", device: str = "cpu"
    ) -> None:
        self.cache, self.settings, self.device = cache, settings, device
        self.backend: Backend = backend

    @classmethod
    def open(cls, folder: Path, original: Path | None = None) -> PairWarps:
        """The warps in a folder, whatever made them.

        Args:
            folder: of the cache; warps are in its folder ``warp``.
            original: folder of warps that the original's code wrote, looked into where ours has none.

        Raises:
            DataError: there are none, or what made them cannot be read.
        """
        file = Path(folder) / "warp" / SETTINGS
        found = read_settings(file)
        if found is None:
            remedy = "Make them with 'ns-megascenes precompute --what depth,warp'."
            raise DataError(file.parent, SETTINGS, "is not there: no warps are stored.", remedy)
        try:
            settings = WarpSettings(**found)
        except TypeError as error:
            remedy = f"Delete the folder {file.parent}; it is made again."
            raise DataError(file, "", f"is of another version ({error}).", remedy) from error
        return cls(WarpCache(Path(folder), original=original), settings)

    @property
    def _settings_file(self) -> Path:
        return self.cache.folder / "warp" / SETTINGS

    def check(self) -> None:
        """Refuse a folder with warps of another kind. Writes nothing. Raises DataError."""
        refuse_other(self._settings_file, self._plain)

    def begin(self) -> None:
        """Note what makes the warps, before the first file. Raises DataError as `check`."""
        self.check()
        if not self._settings_file.is_file():
            write_json(self._settings_file, {"format": FORMAT, **self._plain})

    @property
    def _plain(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self.settings)))

    def key(self, pair: Pair) -> str:
        """Name of a pair's warp. Raises ValueError for paths that cannot be used."""
        relative = pair.ref_w2c @ np.linalg.inv(pair.tgt_w2c)
        scale = 0.0 if pair.scale is None else pair.scale
        numbers = [relative[:3], pair.ref_K[:2], pair.tgt_K[:2], pair.ref_size, pair.tgt_size, scale]
        geometry = np.concatenate([np.ravel(np.asarray(each, np.float64)) for each in numbers])
        return pair_key(_relative(pair.ref_path), _relative(pair.tgt_path), self.settings, geometry)

    def read(self, pair: Pair) -> CachedWarp | None:
        """The stored warp of a pair, ours or the original's; None where there is none.

        Raises:
            DataError: its file is damaged.
        """
        found = self.cache.get(self.key(pair))
        return self.cache.get_original(pair.ref_path, pair.tgt_path) if found is None else found

    def draw(self, pairs: Sequence[Pair], mesh: DepthMesh, depth: Depth) -> list[Warp]:
        """Warps of pairs with one reference, at each target's own aspect, longest side as the settings say.

        Args:
            pairs: of this reference.
            mesh: of it, in its own frame (`reference_mesh`).
            depth: of it; its unit divides translations where a pair has no scale.

        Raises:
            DataError: a pair's pose cannot be put into the depth's unit, or is no camera.
        """
        options = RenderOptions(near=self.settings.near, shading=self.settings.shading)  # pyright: ignore[reportArgumentType]
        warps = []
        for pair in pairs:
            size = fitted_size(*pair.tgt_size, self.settings.canvas)
            try:
                many = render_many(
                    mesh, scaled_intrinsics(pair.tgt_K, pair.tgt_size, size)[None], pair_pose(pair, depth)[None],
                    size[1], size[0], self.settings.spp, self.backend, device=self.device, options=options,
                )  # fmt: skip
            except ValueError as error:
                if isinstance(error, DataError):
                    raise
                problem = f"cannot be drawn ({error})."
                raise DataError(
                    relative_path(pair.tgt_path), f"row {pair.index}", problem, "Check the list."
                ) from error
            warps.append(Warp(many.rgb[0], many.coverage[0], many.depth[0]))
        return warps


def pair_pose(pair: Pair, depth: Depth) -> Float64[Array, "4 4"]:
    """Target camera in the reference's frame, OpenCV, in the unit of the reference's depth.

    Raises:
        DataError: nothing says what that unit is in the reconstruction.
    """
    unit = pose_unit(depth, pair.scale)
    if unit is None:
        problem = f"has the scale {pair.scale}, and the depth's unit is not the reconstruction's."
        remedy = "Use depth in the reconstruction's units: files, a dense workspace, or aligned (--model)."
        raise DataError(relative_path(pair.ref_path), f"row {pair.index}", problem, remedy)
    return relative_pose(pair.ref_w2c, pair.tgt_w2c, unit)


def reference_mesh(prepared: Prepared, depth: Depth, settings: WarpSettings) -> DepthMesh:
    """Surface of a reference as the settings ask for it.

    Raises:
        ValueError: depth of another size than the photo.
    """
    return DepthMesh.from_depth(depth.values, prepared.K, prepared.image, max_angle=settings.max_angle)
