"""A network's disparity, aligned to the points of the photo's reconstruction (spec megascenes 3.1)."""

from __future__ import annotations

import itertools
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from core_ns.errors import DataError
from dataparsers.colmap_model import ColmapImage, ColmapModel, read_model
from dataparsers.megascenes_paths import bucket_path
from megascenes_ns.depth import Alignment, Depth, depth_from_disparity, in_units
from megascenes_ns.depth_align import align_disparity, aligned_depth, sample_bilinear
from megascenes_ns.depth_sources import safe_key

Array = np.ndarray

MODELS_KEPT = 2
"""Reconstructions in memory: pairs come scene by scene."""
POSE_TOLERANCE = 1e-2
"""Largest difference of rotation entries, and of translation relative to its length, of one and the same pose."""


class DisparitySource(Protocol):
    """What can be aligned: disparity up to scale and shift."""

    name: str

    def settings(self) -> dict[str, Any]:
        """See `depth.DepthSource`."""
        ...

    def disparity(self, image: UInt8[Array, "h w 3"], key: str, size: tuple[int, int]) -> Float[Array, "h2 w2"]:
        """Disparity of a photo at a size (height, width); large is near.

        Raises:
            DataError: there is none.
        """
        ...


@dataclass(frozen=True)
class SparseDepth:
    """What a photo sees of its reconstruction."""

    places: Float[Array, "k 2"]
    """Where, as shares of the photo's width and height."""
    depth: Float[Array, "k"]
    """z in the reconstruction's units, positive."""


class AlignedDepth:
    """Disparity aligned by RANSAC; where that fails, the disparity's own quantile stands for the pair's scale.

    Args:
        source: of the disparity.
        models: a COLMAP model (or a folder with sparse/0), or the released tree ``AAA/BBB/sparses/N``, or the folder
            above it with ``reconstruct``.
        categories: category to AAA/BBB, for photos that are listed by their category.
        seed: of the random choices.
    """

    def __init__(
        self,
        source: DisparitySource,
        models: Path,
        *,
        categories: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.models, self.seed = source, models, seed
        self.categories = dict(categories or {})
        self.name = f"{source.name}, aligned"
        self._read: OrderedDict[Path, _Named] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": OrderedDict()}

    def settings(self) -> dict[str, Any]:
        """See `depth.DepthSource`."""
        of_source = self.source.settings()
        return {"source": "aligned", "disparity": of_source, "models": str(self.models.resolve()), "seed": self.seed}

    def depth(
        self,
        image: UInt8[Array, "h w 3"],
        K: Float[Array, "3 3"],
        key: str,
        *,
        size: tuple[int, int] | None = None,
        scale: float | None = None,
        w2c: Float[Array, "4 4"] | None = None,
    ) -> Depth:
        """See `depth.DepthSource`. A rejected alignment is no error: ``alignment.rejected`` says why."""
        height, width = size or (image.shape[0], image.shape[1])
        disparity = self.source.disparity(image, key, (height, width))
        sparse = self.sparse_depth(key, w2c)
        if isinstance(sparse, str):
            alignment = Alignment(np.nan, np.nan, 0, 0, sparse)
        else:
            seen = sample_bilinear(disparity, sparse.places * [width, height])
            alignment = align_disparity(seen, sparse.depth, seed=self.seed)
        relative = bool(alignment.rejected)
        values = depth_from_disparity(disparity) if relative else aligned_depth(disparity, alignment)
        found = in_units(values, self.name, scale=scale, relative=relative, alignment=alignment)
        if found is None:
            raise DataError(key, "disparity", "is not a number anywhere.", "Check the network.")
        return found

    def sparse_depth(self, key: str, w2c: Float[Array, "4 4"] | None = None) -> SparseDepth | str:
        """The points that a photo sees; or why none can be used.

        Args:
            key: see `depth.DepthSource.depth`. Names agree by their last parts, spaces and underscores being the same.
            w2c: must be the photo's pose in the model if it is given, or units would differ.

        Raises:
            DataError: there is no model for it, or it cannot be read.
        """
        path, found = safe_key(key), None
        for folder in self._folders(key):
            model = self._model(folder)
            image = model.find(path)
            if image is not None and (w2c is None or _same_pose(image.w2c, w2c)):
                return model.seen(image)
            found = found or image
        if found is None:
            return "the photo is in no model"
        return "the pair's pose is not that of the model"

    def _folders(self, key: str) -> list[Path]:
        """Where the models of a photo lie: by its scene's number, or all in one."""
        mapped = bucket_path(key, self.categories)
        parts = PurePosixPath(mapped or key).parts
        for first, second in itertools.pairwise(parts):
            if all(len(part) == 3 and part.isdecimal() for part in (first, second)):
                for root in (self.models / "reconstruct", self.models):
                    folders = [each for each in (root / first / second / "sparses").glob("*") if each.is_dir()]
                    if folders:
                        return sorted(folders, key=lambda each: (len(each.name), each.name))
        return [self.models]

    def _model(self, folder: Path) -> _Named:
        if folder not in self._read:
            self._read[folder] = _Named(read_model(folder))
        self._read.move_to_end(folder)
        while len(self._read) > MODELS_KEPT:
            self._read.popitem(last=False)
        return self._read[folder]


class _Named:
    """A model with its photos by file name and its points by id."""

    def __init__(self, model: ColmapModel) -> None:
        self.model = model
        self.images: dict[str, list[tuple[tuple[str, ...], ColmapImage]]] = {}
        for image in model.images.values():
            parts = _plain(PurePosixPath(image.name.replace("\\", "/")))
            self.images.setdefault(parts[-1], []).append((parts, image))
        self.order = np.argsort(model.points.ids)
        self.ids = model.points.ids[self.order]

    def find(self, path: PurePosixPath) -> ColmapImage | None:
        """The photo that shares most of its last parts with the path; None where several do, or none."""
        wanted = _plain(path)
        shared = [(_common(parts, wanted), image) for parts, image in self.images.get(wanted[-1], [])]
        most = max((count for count, _ in shared), default=0)
        best = [image for count, image in shared if count == most]
        return best[0] if len(best) == 1 else None

    def seen(self, image: ColmapImage) -> SparseDepth | str:
        """Its key points with a 3D point in front of it: observed places, because the photo is not undistorted."""
        camera = self.model.cameras[image.camera_id]
        has = image.point_ids >= 0
        at = np.searchsorted(self.ids, image.point_ids[has])
        known = at < len(self.ids)
        known[known] = self.ids[at[known]] == image.point_ids[has][known]
        points = self.model.points.xyz[self.order[at[known]]]
        depth = points @ image.w2c[2, :3] + image.w2c[2, 3]
        front = depth > 0.0
        if not front.any():
            return "the photo sees no points of the model"
        places = image.keypoints[has][known][front] / [camera.width, camera.height]
        return SparseDepth(places, depth[front])


def _plain(path: PurePosixPath) -> tuple[str, ...]:
    """Parts of a path as they are compared: the released files have underscores for spaces (spec megascenes 2.2)."""
    return tuple(unicodedata.normalize("NFC", part).replace(" ", "_") for part in path.parts) or ("",)


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Parts that two paths have in common, counted from their ends."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _same_pose(first: Float[Array, "4 4"], second: Float[Array, "4 4"]) -> bool:
    length = max(float(np.linalg.norm(first[:3, 3])), 1e-9)
    turned = float(np.abs(first[:3, :3] - second[:3, :3]).max())
    moved = float(np.linalg.norm(first[:3, 3] - np.asarray(second)[:3, 3])) / length
    return turned < POSE_TOLERANCE and moved < POSE_TOLERANCE
