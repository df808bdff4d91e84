"""What a tile store looks like on disk: parts, manifest, keys, and the decoding that fills it.

Per view:

    NAME-hash.rgb.npy    uint8   [ty, tx, 64, 64, 3]   edge tiles padded with zeros
    NAME-hash.t.npy      float32 [ty, tx, 64, 64]      ray distance, +inf = miss or padding; only with cached hits
    NAME-hash.mask.npy   uint8   [ty, tx, 64, 8]       one bit per pixel, 1 = use it; only when the view has a mask

and one ``manifest.json`` with sizes, hashes and the key of each view: source files (path relative to the store, bytes,
mtime), camera, and the mesh when distances are stored. File names follow from the view name, so a manifest cannot
point outside its folder. A manifest that cannot be read is never overwritten and nothing is deleted on its word.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped, UInt8

from core_ns.atomic import atomic_path, write_json
from core_ns.errors import DataError
from core_ns.images import image_size, read_image

Array = np.ndarray
TILE = 64
VERSION = 1
MANIFEST = "manifest.json"
# name of the part -> dtype and shape of one tile
PARTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "rgb": ("|u1", (TILE, TILE, 3)),
    "t": ("<f4", (TILE, TILE)),
    "mask": ("|u1", (TILE, TILE // 8)),
}
MAX_RAYS = 1 << 18
"""Rays handed to the ``hits`` callback at once: bounds its memory, long enough to keep a caster busy."""

HitsCallback = Callable[[int, Float32[torch.Tensor, "n 2"]], Any]
"""(view index, pixel centres xy in continuous coordinates) -> distance along the unit ray, float32 [n], +inf = miss."""


@dataclass(frozen=True)
class ViewSource:
    """One photo to store: where it lies, its size in pixels, its camera (plain numbers and lists) and its mask.

    Mask pixels equal to 0 are excluded. In a mask file with transparency the alpha channel counts, so an RGBA photo may
    be its own mask.
    """

    name: str
    image: Path
    width: int
    height: int
    camera: dict[str, Any]
    mask: Path | None = None


@dataclass(frozen=True)
class StoredView:
    """One view of the manifest. ``sha256`` (per part) is None until the view is done; ``valid`` counts its pixels."""

    name: str
    width: int
    height: int
    parts: tuple[str, ...]
    key: dict[str, Any]
    valid: int = 0
    sha256: dict[str, str] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Tile rows and columns."""
        return -(-self.height // TILE), -(-self.width // TILE)

    def file(self, part: str) -> str:
        """File name of a part: readable, safe on every file system, unique through the hash of the whole name."""
        safe = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:80]
        return f"{safe}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.{part}.npy"

    def bytes(self, part: str) -> int:
        """Size of a part's file."""
        rows, columns = self.grid
        return len(npy_header(part, self.grid)) + rows * columns * tile_bytes(part)

    def same_content(self, other: StoredView) -> bool:
        """Whether both describe the same pixels: everything but the outcome."""
        mine = (self.name, self.width, self.height, self.parts, self.key)
        return mine == (other.name, other.width, other.height, other.parts, other.key)


def tile_bytes(part: str) -> int:
    """Bytes of one tile of a part."""
    dtype, shape = PARTS[part]
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def npy_header(part: str, grid: tuple[int, int]) -> bytes:
    """The .npy header of a part; the same bytes for the same shape, so its length is also the offset of the data."""
    dtype, shape = PARTS[part]
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (*grid, *shape)})
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------- sources


def check_size(view: ViewSource) -> None:
    """Compare the sizes in the headers of photo and mask with the camera's.

    Raises:
        DataError: not an image, or another size.
    """
    for path in (view.image, *([view.mask] if view.mask is not None else [])):
        _require_size(view, path, *image_size(path))


def _require_size(view: ViewSource, path: Path, width: int, height: int) -> None:
    if (width, height) != (view.width, view.height):
        problem = f"is {width}x{height} pixels; its camera says {view.width}x{view.height}."
        raise DataError(path, f"view {view.name}", problem, "Use the image folder the cameras were written for.")


def load_view(view: ViewSource) -> tuple[UInt8[Array, "h w 3"], Bool[Array, "h w"] | None]:
    """Decode a view's photo and its mask (true = use the pixel; None = use all).

    Raises:
        DataError: undecodable, or not of the view's size.
    """
    rgb, _ = read_image(view.image)
    _require_size(view, view.image, rgb.shape[1], rgb.shape[0])
    return rgb, load_mask(view)


def load_mask(view: ViewSource) -> Bool[Array, "h w"] | None:
    """Decode a view's mask alone; see `load_view`."""
    if view.mask is None:
        return None
    colour, alpha = read_image(view.mask)
    # A grey mask saved as RGBA has an opaque alpha channel that says nothing.
    valid = colour.max(axis=-1) > 0 if alpha is None or (alpha == 255).all() else alpha > 0
    _require_size(view, view.mask, colour.shape[1], colour.shape[0])
    return np.asarray(valid)


def ray_distances(hits: HitsCallback, index: int, top: int, bottom: int, width: int) -> Float32[Array, "h w"]:
    """Ray distances of the pixel rows ``top .. bottom-1`` of view ``index``, asked for in blocks of `MAX_RAYS`.

    Raises:
        ValueError: the callback returned the wrong number of distances, or NaN.
    """
    flat = np.empty((bottom - top) * width, dtype=np.float32)
    for start in range(0, flat.size, MAX_RAYS):
        pixel = torch.arange(start, min(start + MAX_RAYS, flat.size))
        centres = torch.stack([pixel % width, pixel // width + top], dim=-1).to(torch.float32) + 0.5
        found = hits(index, centres)
        t = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        if t.shape != (len(pixel),) or np.isnan(t).any():
            raise ValueError(f"the hits callback returned shape {t.shape} for {len(pixel)} rays, or NaN")
        flat[start : start + len(pixel)] = t
    return flat.reshape(bottom - top, width)


# ----------------------------------------------------------------------------------------------------- keys, manifest


def file_key(path: Path, folder: Path) -> dict[str, Any]:
    """Identity of a source file; the path is relative to the store, so that a scene may be moved as a whole.

    Raises:
        DataError: no such file.
    """
    try:
        status = os.stat(path)
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive (Windows)
        relative = str(path)
    except OSError as error:
        raise DataError(path, "", f"cannot be read ({error.strerror}).", "Check the image folder.") from error
    return {"path": Path(relative).as_posix(), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def describe(view: ViewSource, folder: Path, mesh_hash: str | None) -> StoredView:
    """What the store should hold for ``view``; ``mesh_hash`` None means without ray distances.

    Raises:
        DataError: a source file is absent, or the camera holds NaN or something JSON cannot.
    """
    try:
        camera = json.loads(json.dumps(view.camera, allow_nan=False))
    except (TypeError, ValueError) as error:
        problem = f"the camera holds something that is not a finite number ({error})."
        raise DataError(view.image, f"view {view.name}", problem, "Check the camera file.") from error
    key = {
        "image": file_key(view.image, folder),
        "mask": file_key(view.mask, folder) if view.mask is not None else None,
        "camera": camera,
        "mesh": mesh_hash,
    }
    parts = ("rgb", *(("t",) if mesh_hash is not None else ()), *(("mask",) if view.mask is not None else ()))
    return StoredView(view.name, view.width, view.height, parts, key)


def write_manifest(folder: Path, views: Mapping[str, StoredView]) -> None:
    """Write the manifest atomically."""
    rows = []
    for view in views.values():
        files = {
            part: {"file": view.file(part), "dtype": PARTS[part][0], "sha256": (view.sha256 or {}).get(part)}
            for part in view.parts
        }
        state = "pending" if view.sha256 is None else "done"
        row = {"name": view.name, "width": view.width, "height": view.height, "valid": view.valid, "state": state}
        rows.append(row | {"files": files, "key": view.key})
    write_json(folder / MANIFEST, {"version": VERSION, "tile": TILE, "views": rows})


def read_manifest(folder: Path, *, absent_is_empty: bool = False) -> dict[str, StoredView]:
    """Read the manifest: view name -> view, in file order.

    Raises:
        DataError: absent (unless allowed), unreadable, of another version, or inconsistent.
    """
    path = folder / MANIFEST
    if absent_is_empty and not path.exists():
        return {}
    remedy = "Delete this file (or the folder) and build the tiles again."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION or content["tile"] != TILE:
            raise ValueError(f"version {content['version']}, tile {content['tile']} instead of {VERSION}, {TILE}")
        views = [_parse_view(row) for row in content["views"]]
    except OSError as error:
        problem = f"cannot be read ({error.strerror})."
        raise DataError(path, "", problem, "Build the tiles with `ns-xscale tiles build`.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is not a manifest of this program ({type(error).__name__}: {error})."
        raise DataError(path, "", problem, remedy) from error
    named = {view.name: view for view in views}
    if len(named) != len(views):
        raise DataError(path, "views", "lists a view twice.", remedy)
    return named


def _parse_view(row: dict[str, Any]) -> StoredView:
    name, width, height, valid = row["name"], row["width"], row["height"], row["valid"]
    if not (isinstance(name, str) and all(type(number) is int for number in (width, height, valid))):
        raise ValueError("name, width, height or valid has the wrong type")
    if width < 1 or height < 1 or not 0 <= valid <= width * height:
        raise ValueError(f"view {name}: {width}x{height} with {valid} pixels")
    parts = tuple(row["files"])
    if parts not in {("rgb",), ("rgb", "t"), ("rgb", "mask"), ("rgb", "t", "mask")}:
        raise ValueError(f"view {name}: files {parts}")
    hashes = {part: row["files"][part]["sha256"] for part in parts}
    done = row["state"] == "done"
    if done and not all(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values()):
        raise ValueError(f"view {name}: not a sha256")
    key = row["key"]
    if set(key) != {"image", "mask", "camera", "mesh"} or not isinstance(key["image"]["path"], str):
        raise ValueError(f"view {name}: key {sorted(key)}")
    if (key["mask"] is not None) != ("mask" in parts) or (key["mesh"] is not None) != ("t" in parts):
        raise ValueError(f"view {name}: key and files disagree")
    return StoredView(name, width, height, parts, key, valid, hashes if done else None)


# -------------------------------------------------------------------------------------------------------- writing


def write_view(
    folder: Path, view: StoredView, source: ViewSource, distances: Callable[[int, int], Float32[Array, "h w"]] | None
) -> StoredView:
    """Decode one view and write its parts, each atomically; returns its finished manifest entry.

    Args:
        distances: ray distances of a range of pixel rows; needed when the view has the part ``t``.

    Raises:
        DataError: see `load_view`.
    """
    rgb, valid = load_view(source)
    rows: dict[str, Iterator[Array]] = {"rgb": _tile_rows(lambda top, bottom: rgb[top:bottom], view, 0)}
    if distances is not None:
        rows["t"] = _tile_rows(distances, view, np.inf)
    if valid is not None:
        bits = valid  # a name that the type checker knows to be an array inside the lambda
        blocks = _tile_rows(lambda top, bottom: bits[top:bottom], view, False)
        rows["mask"] = (np.packbits(block, axis=-1) for block in blocks)
    hashes = {part: _write_part(folder / view.file(part), part, view.grid, rows[part]) for part in view.parts}
    # Parts of an older form of the view, say a mask it no longer has, would only occupy the disk.
    for part in set(PARTS) - set(view.parts):
        (folder / view.file(part)).unlink(missing_ok=True)
    count = view.width * view.height if valid is None else int(np.count_nonzero(valid))
    return replace(view, valid=count, sha256=hashes)


def _write_part(path: Path, part: str, grid: tuple[int, int], rows: Iterator[Array]) -> str:
    """Write one .npy file row by row of tiles; returns its sha256."""
    digest = hashlib.sha256(header := npy_header(part, grid))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for row in rows:
            data = np.ascontiguousarray(row, dtype=PARTS[part][0]).data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()


def _tile_rows(
    rows: Callable[[int, int], Shaped[Array, "h w ..."]], view: StoredView, fill: float
) -> Iterator[Shaped[Array, "tx 64 64 ..."]]:
    """Cut an image, given by row ranges, into rows of tiles padded with ``fill``; one row of tiles in memory."""
    for top in range(0, view.height, TILE):
        block = rows(top, min(top + TILE, view.height))
        slab = np.full((TILE, view.grid[1] * TILE, *block.shape[2:]), fill, dtype=block.dtype)
        slab[: block.shape[0], : view.width] = block
        yield slab.reshape(TILE, view.grid[1], TILE, *block.shape[2:]).swapaxes(0, 1)
