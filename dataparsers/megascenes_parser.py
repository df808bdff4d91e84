"""nerfstudio dataparser ``megascenes-pairs``: converted pair lists, or one photo (spec megascenes 8.1, 8.2).

Every pair is put into one world: its reference at the origin, looking along +y, in units of its depth quantile. So a
camera of nerfstudio's is the pose that the networks are told. Training reads the pair table itself; nerfstudio gets
some of the pairs as cameras to show and to evaluate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Optional, Type

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from core_ns.errors import DataError
from core_ns.frames import OPENGL_FROM_OPENCV
from core_ns.images import IMAGE_SUFFIXES, image_size
from dataparsers.megascenes_missing import MissingPair, drop_missing
from dataparsers.megascenes_paths import Resolver, read_categories, split_path
from dataparsers.megascenes_table import PairTable, list_splits

Array = np.ndarray
Split = Literal["train", "val", "test"]

PICTURE = 256
"""Longest side of the cameras that nerfstudio gets, until a data manager says what its networks see."""
SMALLEST_SCALE = 1e-7
WORLD_FROM_REFERENCE = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
"""Axes of the reference's OpenCV camera in the z-up world that it sees along +y."""
HELD_OUT = 10
"""Without a test list, one pair in so many is held out."""
DEFAULT_DEGREES = 55.0
"""Horizontal field of view of a photo that says nothing of its lens."""


@dataclass
class MegaScenesPairsConfig(DataParserConfig):
    """A folder that ns-megascenes convert-splits wrote, or one photo to generate views of without training."""

    _target: Type = field(default_factory=lambda: MegaScenesPairs)
    data: Path = Path()
    """Folder of converted splits (train, test), or a photo."""
    images: Optional[Path] = None
    """Folder of the photos; default: images in the data folder."""
    categories: Optional[Path] = None
    """metadata/categories.json of the bucket, for photos laid out as AAA/BBB; default: categories.json in the data or
    the photos' folder, if it is there."""
    strict: bool = False
    """Refuse to start when a photo is missing, instead of leaving its pairs out."""
    scene_filter: str = ""
    """Use only pairs whose category matches one of these patterns, such as Paris*,Chateau*."""
    max_pairs: Optional[int] = None
    """Use only the first so many pairs of each split."""
    num_val: int = 10_000
    """Pairs at the beginning of the test list that validate; the others test. All do both in a shorter list."""
    shown_pairs: int = 64
    """Pairs of each split that viewer, ns-render dataset and ns-eval see, evenly spread over it; 0: all."""
    downscale_factor: tyro.conf.Suppress[Optional[int]] = None
    """Not used; nerfstudio's tools set it."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of a run: the training pairs, then those of the test list."""

    train: PairTable
    test: PairTable
    """The whole test list; `rows` says which of it are which."""
    num_val: int
    resolver: Resolver
    missing: dict[str, list[MissingPair]]
    """Left out, by split."""
    unscaled: int
    """Left out because the list gives them no scale."""

    def rows(self, split: Split) -> Int[Array, "n"]:
        """Numbers of a split's pairs: `at` takes them."""
        if split == "train":
            return np.arange(len(self.train))
        first, last = len(self.train), len(self.train) + len(self.test)
        if len(self.test) <= self.num_val:
            return np.arange(first, last)
        return np.arange(first, first + self.num_val) if split == "val" else np.arange(first + self.num_val, last)

    def at(self, number: int) -> tuple[PairTable, int]:
        """Table and row in it of a pair's number.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= number < len(self.train) + len(self.test):
            raise IndexError(f"pair {number} of {len(self.train) + len(self.test)}")
        if number < len(self.train):
            return self.train, number
        return self.test, number - len(self.train)

    def describe(self) -> list[str]:
        """Lines for the start of a run."""
        lines = [f"{len(self.train)} pairs to train on, {len(self.test)} held out ({self.resolver.images})."]
        for split, found in self.missing.items():
            if found:
                lines.append(
                    f"{len(found)} pairs of {split} left out, photos are missing; first {found[0].ref_path} -> "
                    f"{found[0].tgt_path}."
                )
        if self.unscaled:
            lines.append(f"{self.unscaled} pairs left out: the list gives no scale.")
        return lines


class MegaScenesPairs(DataParser):
    """See `MegaScenesPairsConfig`. Files are looked at once, when something is first asked for."""

    config: MegaScenesPairsConfig

    def __init__(self, config: MegaScenesPairsConfig) -> None:
        super().__init__(config)
        self._pairs: Pairs | None = None
        self.picture = PICTURE
        """Longest side of the cameras; set by the data manager."""
        self.photo_camera: tuple[int, int, float] | None = None
        """Width, height and focal length in pixels of the upright photo, of those who know; set by the data manager."""

    def photo(self) -> Path | None:
        """The photo, where the data are one.

        Raises:
            DataError: the data are neither a folder of converted splits nor a photo.
        """
        data = Path(self.config.data)
        if data.is_dir():
            return None
        if data.suffix.lower() == ".pkl":
            raise DataError(
                data, "", "is a pickle, which could run anything when it is read.",
                f"Convert it once: ns-megascenes convert-splits {data} {data.parent / 'pairs'}; then train on that "
                "folder.",
            )  # fmt: skip
        if not data.is_file():
            remedy = "Name a folder of converted splits (ns-megascenes convert-splits), or a photo."
            raise DataError(data, "", "is not there.", remedy)
        if data.suffix.lower() not in IMAGE_SUFFIXES:
            remedy = "Name a folder of converted splits (ns-megascenes convert-splits), or a JPEG or PNG."
            raise DataError(data, "", "is neither a folder nor a photo.", remedy)
        image_size(data)
        return data

    def pairs(self) -> Pairs:
        """The pairs whose photos are there.

        Raises:
            DataError: no converted splits, damaged ones, no photos, or nothing left.
        """
        if self._pairs is None:
            self._pairs = self._open()
        return self._pairs

    def _open(self) -> Pairs:
        config, folder = self.config, Path(self.config.data)
        for name, least in (("num_val", 2), ("shown_pairs", 0), ("max_pairs", 1)):
            value = getattr(config, name)
            if value is not None and value < least:
                raise DataError("options", name.replace("_", "-"), f"is {value}.", f"Give {least} or more.")
        splits = list_splits(folder)
        if "train" not in splits and "test" not in splits:
            found = f"has {', '.join(splits)}, but neither train nor test." if splits else "has no converted splits."
            pickles = [each.name for each in sorted(folder.glob("*.pkl"))][:3]
            lists = " ".join(pickles) or "trainsplit.pkl testsplit.pkl"
            remedy = f"Convert the lists: ns-megascenes convert-splits {lists} {folder}."
            raise DataError(folder, "", found, remedy)
        resolver = self._resolver(folder)
        tables, missing, unscaled = {}, {}, 0
        for name in ("train", "test"):
            if name not in splits:
                continue
            table = self._matching(PairTable.open(splits[name]))
            if config.max_pairs is not None:
                table = table.select(range(min(config.max_pairs, len(table))))
            if not len(table):
                remedy = "Correct --scene-filter, or convert another list."
                raise DataError(splits[name], "pairs", "has none that are asked for.", remedy)
            table, missing[name] = drop_missing(table, resolver, config.strict)
            scaled = ~np.isnan(table.arrays().scale)
            unscaled += int((~scaled).sum())
            tables[name] = table.select(np.nonzero(scaled)[0]) if not scaled.all() else table
        train = tables.get("train") or tables["test"]
        if "test" in tables:
            test = tables["test"]
        else:
            held = max(2, min(len(train) // HELD_OUT, config.num_val))
            last = max(len(train) - held, 0)
            train, test = train.select(range(last)), train.select(range(last, len(train)))
        if len(train) < 1 or len(test) < 1:
            problem = f"has {len(train)} pairs to train on and {len(test)} to hold out; {unscaled} have no scale."
            raise DataError(folder, "pairs", problem, "Convert a longer list.")
        return Pairs(train, test, config.num_val, resolver, missing, unscaled)

    def _resolver(self, folder: Path) -> Resolver:
        images = Path(self.config.images) if self.config.images is not None else folder / "images"
        if not images.is_dir():
            option = "megascenes-pairs --images FOLDER"
            raise DataError(images, "photos", "is no folder.", f"Name the folder of the photos: {option}.")
        found = [self.config.categories] if self.config.categories is not None else []
        found += [each for each in (folder / "categories.json", images / "categories.json") if each.is_file()]
        return Resolver(images, read_categories(found[0]) if found else {})

    def _matching(self, table: PairTable) -> PairTable:
        patterns = [each.strip() for each in self.config.scene_filter.split(",") if each.strip()]
        if not patterns:
            return table
        numbers = table.path_numbers()
        wanted = np.zeros(table.path_count, bool)
        for number in np.unique(numbers):
            category = split_path(table.path(int(number))).category
            wanted[number] = any(fnmatchcase(category, pattern) for pattern in patterns)
        return table.select(np.nonzero(wanted[numbers].all(axis=1))[0])

    def shown(self, split: Split) -> Int[Array, "n"]:
        """Numbers of the pairs that nerfstudio gets as cameras: evenly spread over the split.

        Raises:
            DataError: see `pairs`.
        """
        rows = self.pairs().rows(split)
        count = len(rows) if not self.config.shown_pairs else min(self.config.shown_pairs, len(rows))
        return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        photo = self.photo()
        if photo is not None:
            return photo_outputs(photo, split, self.photo_camera, self.picture)
        which: Split = split if split in ("train", "val", "test") else "test"  # type: ignore[assignment]
        return pair_outputs(self.pairs(), self.shown(which), Path(self.config.data).absolute(), self.picture)


def canonical_cameras(
    ref_w2c: Float[Array, "n 4 4"], tgt_w2c: Float[Array, "n 4 4"], scale: Float[Array, "n"]
) -> Float[Array, "n 4 4"]:
    """nerfstudio's cameras of the targets, camera to world: W rel diag(1, -1, -1, 1), rel = ref_w2c inv(tgt_w2c) with
    its translation divided by the scale (spec megascenes 8.1). float64."""
    rel = ref_w2c @ np.linalg.inv(tgt_w2c)
    rel[:, :3, 3] /= np.maximum(scale, SMALLEST_SCALE)[:, None]
    return WORLD_FROM_REFERENCE @ rel @ OPENGL_FROM_OPENCV


def resized(size: Int[Array, "n 2"], picture: int) -> Int[Array, "n 2"]:
    """(width, height) when the longest side becomes ``picture`` and the other is rounded down (spec megascenes 2.4)."""
    longest = size.max(axis=1, keepdims=True)
    small = np.maximum(np.floor(size * (picture / longest)).astype(np.int64), 1)
    return np.where(size == longest, picture, small)


def pair_outputs(pairs: Pairs, numbers: Int[Array, "n"], root: Path, picture: int = PICTURE) -> DataparserOutputs:
    """Pairs as nerfstudio takes them.

    ``Cameras.metadata["pair_idx"]``, int64 [N, 1], is the number of the pair. The same photo is the target of many
    pairs, and ``ns-render dataset`` names its pictures after the files: the names here are unique and of no file.

    Args:
        pairs: all of them.
        numbers: which.
        root: of the names.
        picture: longest side of the cameras, pixels.
    """
    parts, names = [], []
    for number in numbers:
        table, row = pairs.at(int(number))
        parts.append(table.arrays([row]))
        stem = Path(split_path(table.paths(row)[1]).name).stem
        names.append(root / "pairs" / f"{int(number):07d}__{stem}.png")

    def stacked(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    c2w = canonical_cameras(stacked("ref_w2c"), stacked("tgt_w2c"), stacked("scale"))
    size = stacked("tgt_size")
    small = resized(size, picture)
    K = stacked("tgt_K")
    factor = small / size
    focal = np.stack([K[:, 0, 0], K[:, 1, 1]], axis=1) * factor
    return _outputs(c2w, focal, K[:, :2, 2] * factor, small, names, np.asarray(numbers))


def photo_outputs(
    photo: Path, split: str, camera: tuple[int, int, float] | None = None, picture: int = PICTURE
) -> DataparserOutputs:
    """One photo: its camera at the origin; twice for evaluation, as ``ns-render interpolate`` wants two.

    Args:
        photo: the file.
        split: of nerfstudio.
        camera: width, height and focal length in pixels; None: the size as stored, 55 degrees across.
        picture: longest side of the camera, pixels.
    """
    if camera is None:
        width, height = image_size(photo)
        camera = width, height, 0.5 * width / np.tan(np.radians(DEFAULT_DEGREES) / 2)
    count = 1 if split == "train" else 2
    size = np.array([camera[:2]] * count)
    small = resized(size, picture)
    focal = camera[2] * small / size
    c2w = np.stack([WORLD_FROM_REFERENCE @ OPENGL_FROM_OPENCV] * count)
    names = [photo.absolute().parent / "pairs" / f"{number:07d}__{photo.stem}.png" for number in range(count)]
    found = _outputs(c2w, focal, small / 2, small, names, np.zeros(count, np.int64))
    found.metadata["photo"] = str(photo)
    return found


def _outputs(
    c2w: Array, focal: Array, centre: Array, size: Array, names: list[Path], numbers: Array
) -> DataparserOutputs:
    def column(values: Array, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(kind)[:, None]

    cameras = Cameras(
        camera_to_worlds=torch.from_numpy(np.ascontiguousarray(c2w[:, :3])).float(),
        fx=column(focal[:, 0]),
        fy=column(focal[:, 1]),
        cx=column(centre[:, 0]),
        cy=column(centre[:, 1]),
        width=column(size[:, 0], torch.int64),
        height=column(size[:, 1], torch.int64),
        camera_type=CameraType.PERSPECTIVE,
        metadata={"pair_idx": column(numbers, torch.int64)},
    )
    box = torch.tensor([[-10.0, -10.0, -10.0], [10.0, 10.0, 10.0]])
    return DataparserOutputs(image_filenames=names, cameras=cameras, scene_box=SceneBox(aabb=box))


megascenes_pairs = DataParserSpecification(
    config=MegaScenesPairsConfig(), description="Pairs of photos in MegaScenes' lists (converted), or one photo."
)
