"""Depth that is on disk already, or needs none: .npy files, COLMAP's dense depth maps, a wall (spec megascenes 3.1).

`open_source` makes any source, those with a network included, from the words of a console option.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped, UInt8

from core_ns.errors import DataError
from dataparsers.megascenes_paths import MARKER, original_depth_name, path_problem, split_path
from megascenes_ns.depth import Depth, DepthSource, depth_from_disparity, in_units, resize_depth

Array = np.ndarray

MAX_SIDE = 1 << 15


def open_source(
    text: str,
    *,
    model: Path | None = None,
    categories: Mapping[str, str] | None = None,
    disparity: bool = False,
    device: str = "cpu",
    download: bool = False,
    seed: int = 0,
) -> DepthSource:
    """The source that a console option names.

    Args:
        text: ``plane`` or ``plane:2.5``; a .npy or COLMAP .bin file; a folder with a transformers depth-estimation
            model, with a COLMAP dense workspace, or with .npy files; with ``download`` also the name of a model of the
            Hugging Face hub.
        model: a COLMAP model, or a folder ``AAA/BBB/sparses/N`` of them, that the disparity of a network or of .npy
            files is aligned to.
        categories: category to AAA/BBB, for that folder (`dataparsers.megascenes_paths.read_categories`).
        disparity: .npy files hold disparity (large is near).
        device: of networks.
        download: let a model be fetched from the Hugging Face hub.
        seed: of the alignment's random choices.

    Raises:
        DataError: there is no such thing, or the options do not go together.
    """
    from megascenes_ns.depth_dense import DenseDepth
    from megascenes_ns.depth_network import NetworkDepth
    from megascenes_ns.depth_sparse import AlignedDepth

    source: Any
    word, _, number = text.partition(":")
    path = Path(text)
    if word == "plane":
        source = PlaneDepth(_distance(number) if number else None)
    elif path.is_dir() and (path / "config.json").is_file():
        source = NetworkDepth(text, device=device)
    elif (path / "stereo" / "depth_maps").is_dir() or (path.is_file() and path.suffix.lower() == ".bin"):
        source = DenseDepth(path)
    elif path.exists():
        source = FileDepth(path, disparity=disparity)
    elif download:
        source = NetworkDepth(text, device=device, download=True)
    else:
        remedy = "Name a .npy file, a folder of them, a COLMAP workspace, a model's folder, or plane."
        raise DataError(text, "depth", "is not there.", remedy)
    if model is None:
        return source
    if not hasattr(source, "disparity"):
        remedy = "Name a network's folder, or .npy files of disparity (--disparity)."
        raise DataError(text, "depth", "is no disparity, which alone can be aligned to a model.", remedy)
    return AlignedDepth(source, model, categories=categories, seed=seed)


class PlaneDepth:
    """A wall across the view, at one z: for tests, and to see poses without any depth.

    Args:
        distance: z in the reconstruction's units; None: one unit of q20, whatever that is.
    """

    def __init__(self, distance: float | None = None) -> None:
        self.distance = distance
        self.name = "plane" if distance is None else f"plane at {distance:g}"

    def settings(self) -> dict[str, Any]:
        """See `DepthSource`."""
        return {"source": "plane", "distance": self.distance}

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
        """See `DepthSource`."""
        wall = np.full(size or image.shape[:2], 1.0 if self.distance is None else self.distance)
        found = in_units(wall, self.name, scale=scale, relative=self.distance is None)
        assert found is not None  # a wall is always seen
        return found


class FileDepth:
    """Depth in .npy files, float, ``[h, w]`` at any size of the photo's aspect.

    Args:
        path: one file, or a folder. Of a folder it is ``KEY.npy`` with or without the photo's suffix, or the original's
            ``CATEGORY/commons/PART/aligned_depth_maps/STEM.npy``, whichever is there first.
        disparity: the files hold disparity of an unknown scale (large is near).
    """

    def __init__(self, path: Path, *, disparity: bool = False) -> None:
        self.path, self.is_disparity = path, disparity
        self.name = f"{'disparity' if disparity else 'depth'} files"

    def settings(self) -> dict[str, Any]:
        """See `DepthSource`."""
        return {"source": "files", "disparity": self.is_disparity, "path": str(self.path.resolve())}

    def disparity(self, image: UInt8[Array, "h w 3"], key: str, size: tuple[int, int]) -> Float[Array, "h2 w2"]:
        """Disparity of one photo at a size (height, width).

        Raises:
            DataError: as `DepthSource.depth`; or the files hold depth.
        """
        if not self.is_disparity:
            remedy = "Say --disparity if they hold disparity after all."
            raise DataError(self.path, "depth", "holds depth, and disparity is what is aligned.", remedy)
        return np.asarray(resized_disparity(self._read(key, image.shape[:2]), *size), np.float64)

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
        """See `DepthSource`."""
        height, width = size or image.shape[:2]
        stored = self._read(key, image.shape[:2])
        if self.is_disparity:
            values = depth_from_disparity(resized_disparity(stored, height, width))
        else:
            values = resize_depth(stored, height, width)
        found = in_units(values, self.name, scale=scale, relative=self.is_disparity)
        if found is None:
            raise DataError(self.file_of(key), "values", "shows no surface: nothing is above 0.", "Make it again.")
        return found

    def file_of(self, key: str) -> Path:
        """The file of a photo.

        Raises:
            DataError: there is none, or the key leads out of the folder.
        """
        if not self.path.is_dir():
            if not self.path.is_file():
                raise DataError(self.path, "depth", "is not there.", "Correct the path.")
            return self.path
        tried = candidates(key)
        for name in tried:
            if (self.path / name).is_file():
                return self.path / name
        problem = f"has no depth of '{key}'; looked for {', '.join(tried)}."
        raise DataError(self.path, key, problem, "Add it, or name another source.")

    def _read(self, key: str, photo: tuple[int, int]) -> Float64[Array, "h w"]:
        file = self.file_of(key)
        return checked_map(read_npy(file), file, photo)


def safe_key(key: str) -> PurePosixPath:
    """A photo's key as a path that stays where it is joined; pair lists are not to be trusted (spec megascenes 2.6).

    Raises:
        DataError: it leads elsewhere.
    """
    problem = path_problem(key)
    if problem is not None or MARKER in key:
        problem = problem or f"is not relative to the photos: it holds {MARKER!r}"
        raise DataError(repr(key)[:200], "path of a photo", f"{problem}.", "Correct the pair list.")
    return PurePosixPath(key)


def candidates(key: str) -> list[str]:
    """Where the depth of a photo may lie in a folder, best first.

    Raises:
        DataError: as `safe_key`.
    """
    path = safe_key(key)
    found = [f"{path}.npy", str(path.with_suffix(".npy"))]
    if split_path(key).released:
        original = original_depth_name(key)
        usual = str(PurePosixPath(original).with_name(f"{path.stem}.npy"))
        found += [spelled for name in (original, usual) for spelled in (name, _underscored(name))]
    return list(dict.fromkeys(found))


def _underscored(name: str) -> str:
    """With the file name as photos are released: underscores for spaces."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.replace(" ", "_")))


def read_npy(file: Path) -> Shaped[Array, "..."]:
    """An array file, never a pickle.

    Raises:
        DataError: it is none.
    """
    try:
        with open(file, "rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        first = (str(error).splitlines() or [""])[0]
        problem = f"cannot be read as .npy ({type(error).__name__}: {first})."
        raise DataError(file, "array", problem, "Save it again with numpy.save.") from error


def checked_map(array: Shaped[Array, "..."], file: Path, photo: tuple[int, int]) -> Float64[Array, "h w"]:
    """A map that may be a photo's, as float64.

    Args:
        photo: (height, width) of the photo: the aspects must agree up to the rounding of a resize.

    Raises:
        DataError: it is no real-valued picture of the photo's aspect.
    """
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not 0 < min(array.shape) <= max(array.shape) <= MAX_SIDE:
        problem = f"is {array.dtype} {list(array.shape)}, not a picture of numbers [height, width]."
        raise DataError(file, "array", problem, "Save z as float32 [height, width].")
    (height, width), (rows, columns) = photo, array.shape
    # Resizing rounds each side by less than a pixel.
    if abs(columns * height - rows * width) > max(height, width, rows, columns):
        problem = f"is {columns}x{rows}, and the photo {width}x{height}: another aspect."
        raise DataError(file, "size", problem, "Name the depth of this photo, neither cropped nor padded.")
    return array.astype(np.float64)


def resized_disparity(disparity: Shaped[Array, "h w"], height: int, width: int) -> Float64[Array, "height width"]:
    """Bicubic, pixel centres at +0.5, as the original resizes disparity; the same size comes back as it is."""
    disparity = np.asarray(disparity, np.float64)
    if disparity.shape == (height, width):
        return disparity
    import torch  # not needed where depth is in files

    tensor = torch.from_numpy(disparity)[None, None]
    return torch.nn.functional.interpolate(tensor, (height, width), mode="bicubic", align_corners=False)[0, 0].numpy()


def _distance(number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = np.nan
    if not (np.isfinite(value) and value > 0.0):
        raise DataError(f"plane:{number}", "depth", "is no distance.", "Say plane:2.5, or plane.")
    return value
