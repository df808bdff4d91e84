"""Triangle meshes from disk, in float64, with what a ray caster cannot use removed or refused (spec xscale 2.8)."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from core_ns.errors import DataError

MESH_SUFFIXES = (".ply", ".obj", ".stl", ".off", ".glb", ".gltf")

_CHUNK = 1_000_000
_EXPORT = "Export the mesh again as binary PLY with triangles."


@dataclass(frozen=True, eq=False)
class Mesh:
    """``vertices`` float64 [V, 3] (the file's frame and units), ``faces`` int64 [F, 3], optional colours uint8 [V, 3].

    Every vertex is finite and used, every face has an area. ``dropped_faces`` counts those of the file that had none.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int64[np.ndarray, "f 3"]
    dropped_faces: int
    vertex_colors: UInt8[np.ndarray, "v 3"] | None = None


def mesh_files(folder: str | Path) -> list[Path]:
    """The mesh files directly in ``folder``, sorted by name; hidden files are left out."""
    paths = (path for path in Path(folder).iterdir() if path.suffix.lower() in MESH_SUFFIXES)
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def mesh_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file, to recognise a mesh that changed under a cache."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _usable_faces(vertices: np.ndarray, faces: np.ndarray) -> Bool[np.ndarray, "f"]:
    """Faces with three finite corners and an area; in chunks, since 20 M faces gather 1.4 GB of corners."""
    usable = np.zeros(len(faces), dtype=bool)
    for start in range(0, len(faces), _CHUNK):
        corners = vertices[faces[start : start + _CHUNK]]
        with np.errstate(all="ignore"):  # NaN and overflow compare as unusable
            edges = corners[:, [1, 2, 0]] - corners
            twice_area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
            longest = np.square(edges).sum(axis=-1).max(axis=-1)
            # The relative bound calls a needle degenerate only where double precision cannot tell it from a segment.
            usable[start : start + _CHUNK] = np.isfinite(longest) & (twice_area > 1e-14 * longest)
    return usable


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(vertices, faces, colours) as trimesh reads them; scenes are concatenated, polygons triangulated."""
    import trimesh  # 0.3 s to import, while dataparser modules load with every ns-* command

    # Materials stay unread: they would pull in other files that the path in the mesh names.
    scene: Any = trimesh.load_scene(path, file_type=path.suffix[1:].lower(), process=False, skip_materials=True)
    solids: list[Any] = [item for item in scene.geometry.values() if isinstance(item, trimesh.Trimesh)]
    solids = [item for item in solids if len(item.faces)]
    if not solids:
        points = sum(len(getattr(item, "vertices", ())) for item in scene.geometry.values())
        problem = "holds no faces; it may be truncated or in another format."
        if points:
            problem = f"holds {points} points and no faces: a point cloud."
        raise DataError(path, "faces", problem, "Export the surface mesh of the reconstruction, not its points.")
    vertices, faces = [], []
    colors: list[np.ndarray] | None = []
    count = 0
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        solid: Any = scene.geometry[name]
        if not any(solid is item for item in solids):
            continue
        points = np.asarray(solid.vertices, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise DataError(path, "vertices", f"vertex array has shape {points.shape}, not [V, 3].", _EXPORT)
        if not np.array_equal(transform, np.eye(4)):
            with np.errstate(all="ignore"):
                points = points @ transform[:3, :3].T + transform[:3, 3]
        vertices.append(points)
        index = np.asarray(solid.faces, dtype=np.int64)
        _check_indices(path, index, len(points))
        faces.append(index + count)
        count += len(points)
        own = np.asarray(solid.visual.vertex_colors)[:, :3] if solid.visual.kind == "vertex" else None
        colors = [*colors, own] if colors is not None and own is not None and len(own) == len(points) else None
    if not faces:
        raise DataError(path, "scene", "no mesh is placed in the scene graph.", _EXPORT)
    packed = np.concatenate(colors).astype(np.uint8) if colors else None
    return np.concatenate(vertices), np.concatenate(faces), packed


def _check_indices(path: Path, faces: np.ndarray, count: int) -> None:
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise DataError(path, "faces", f"face array has shape {faces.shape}, not [F, 3].", _EXPORT)
    outside = ((faces < 0) | (faces >= count)).any(axis=1)
    if outside.any():
        first = int(outside.argmax())
        problem = (
            f"{int(outside.sum())} faces name vertices that do not exist (there are {count}); the file is damaged."
        )
        raise DataError(path, f"face {first}", problem, _EXPORT)


def _declared_lines(path: Path, handle: BinaryIO) -> tuple[int, int] | None:
    """(lines of vertices and faces the header declares, lines that follow) of a text PLY or OFF; None for others."""
    if path.suffix.lower() == ".ply":
        expected, text = 0, False
        for line in itertools.islice(handle, 1000):
            words = line.split()
            text |= words[:2] == [b"format", b"ascii"]
            expected += int(words[2]) if words[:1] == [b"element"] else 0
            if words == [b"end_header"]:
                break
        return (expected, sum(1 for line in handle if line.strip())) if text else None
    if path.suffix.lower() == ".off":
        lines = (words for line in handle if (words := line.split(b"#", 1)[0].split()))
        first = next(lines)
        counts = first[1:] or next(lines)
        return int(counts[0]) + int(counts[1]), sum(1 for _ in lines)
    return None


def _check_length(path: Path) -> None:
    """Hold the header against the lines that follow: trimesh reads a text file that was cut off without complaint."""
    with open(path, "rb") as handle:
        lines = _declared_lines(path, handle)
    if lines and lines[1] < lines[0]:
        problem = (
            f"the header declares {lines[0]} lines of vertices and faces, {lines[1]} follow: the file is truncated."
        )
        raise DataError(path, "header", problem, "Copy or export the mesh again.")


def _check_obj_indices(path: Path) -> None:
    """Refuse the two kinds of OBJ index that trimesh turns into wrong triangles without complaint.

    OBJ counts from 1; and a negative index counts back from the face, not from the end of the file.
    """
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as text:
        zero = re.search(rb"^f[^\n]*[ \t]0+(?![0-9])", text, re.MULTILINE)
        relative = re.search(rb"^f[^\n]*[ \t]-", text, re.MULTILINE)
        later = relative and re.compile(rb"^v[ \t]", re.MULTILINE).search(text, relative.end())
        if zero:
            raise DataError(path, f"byte {zero.start()}", "a face has index 0; OBJ counts from 1.", _EXPORT)
        if relative and later:
            problem = "faces with negative indices stand between vertices, which cannot be read."
            raise DataError(path, f"byte {relative.start()}", problem, _EXPORT)


def load_mesh(path: str | Path) -> Mesh:
    """Read a triangle mesh in the frame of its file.

    Vertices keep double precision (binary double PLY, decimal digits of OBJ). Vertices are neither merged nor
    reordered beyond what trimesh needs for its format; vertices that no usable face needs are removed. Faces with NaN
    or infinite corners, and faces without area, are dropped and counted. Materials and texture coordinates are ignored.

    Raises:
        DataError: no such file, unknown suffix, empty, truncated, unreadable, a point cloud, a face that names a vertex
            that does not exist, or no usable face.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "path", "is not a file.", "Name the mesh file with --mesh.")
    if path.suffix.lower() not in MESH_SUFFIXES:
        remedy = f"Use one of {', '.join(MESH_SUFFIXES)}."
        raise DataError(path, "suffix", f"'{path.suffix}' is not a known mesh format.", remedy)
    if path.stat().st_size == 0:
        raise DataError(path, "size", "is empty (0 bytes).", "Copy or export the mesh again.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # numpy's text reader stops at a word that is no number and only warns; the rest of the mesh would be lost.
        warnings.filterwarnings("error", message=".*could not be read to its end.*")
        try:
            _check_length(path)
            if path.suffix.lower() == ".obj":
                _check_obj_indices(path)
            vertices, faces, colors = _read(path)
        except DataError:
            raise
        except Exception as error:  # every format of trimesh raises its own
            text = str(error).splitlines()[0][:200] if str(error) else "no message"
            problem = f"cannot be read as a mesh ({type(error).__name__}: {text}); it may be truncated."
            raise DataError(path, "content", problem, _EXPORT) from error
    usable = _usable_faces(vertices, faces)
    kept = faces[usable]
    if not len(kept):
        problem = f"none of the {len(faces)} faces has finite corners and an area."
        raise DataError(path, "faces", problem, _EXPORT)
    used = np.zeros(len(vertices), dtype=bool)
    used[kept] = True
    if not used.all():
        kept = (np.cumsum(used) - 1)[kept]
        vertices, colors = vertices[used], None if colors is None else colors[used]
    return Mesh(
        np.ascontiguousarray(vertices),
        np.ascontiguousarray(kept, dtype=np.int64),
        dropped_faces=int(len(faces) - usable.sum()),
        vertex_colors=colors,
    )
