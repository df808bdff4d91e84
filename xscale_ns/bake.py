"""Bake a colour function of the surface into a texture and write a GLB (spec xscale 10, priority 2).

Everything is numpy: charts come from `xscale_ns.unwrap`, texels are filled by a vectorised scan conversion, so no
OpenGL context and no GPU is needed. Texture coordinates are in texels with (0, 0) at the outer corner of the top-left
texel and y down (glTF's convention times the size); a texel's centre is at (column + 0.5, row + 0.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int, Int32, UInt8
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from core_ns.atomic import write_bytes
from core_ns.errors import DataError
from xscale_ns.unwrap import Unwrapped, unwrap

Array = np.ndarray
ColourOf = Callable[[Array, Array], Any]

MAX_FACES = 500_000
MAX_TEXTURE = 16_384
POINTS_PER_CALL = 65_536
_TEXELS_PER_CHUNK = 1 << 21
_NEIGHBOURS = np.array([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])


class BakeReport(NamedTuple):
    """What a bake did: charts' share of the texture, colours evaluated, texels added around the charts."""

    covered_share: float
    evaluated: int
    dilated: int


def bake(
    vertices: Float[Array, "V 3"],
    faces: Int[Array, "F 3"],
    colour_of: ColourOf,
    texture_size: int,
    output_glb: str | Path,
    padding: int = 4,
) -> BakeReport:
    """Write a textured GLB of a mesh, atomically.

    Args:
        vertices: any frame and unit; written as float32, so large offsets should be removed first.
        faces: indices; their winding gives the outward normals.
        colour_of: ``(points [N, 3], unit outward normals [N, 3])``, float64 arrays in the frame of the vertices, to
            display sRGB ``[N, 3]`` in [0, 1] (array or CPU tensor); values outside are clipped. Called with at most
            `POINTS_PER_CALL` points.
        texture_size: side of the square texture, texels.
        output_glb: the file to write.
        padding: texels between charts, and how far their colours are continued into the gaps.

    Raises:
        DataError: an unusable mesh (too many faces among others) or texture size; nothing is written.
        ValueError: ``colour_of`` returned another shape or numbers that are not finite.
    """
    vertices, faces = _checked(vertices, faces, texture_size, padding, output_glb)
    mesh = unwrap(vertices, faces, texture_size, padding, output_glb)
    owner = rasterize(mesh.texels[mesh.faces], texture_size)
    image = np.zeros((texture_size, texture_size, 3), dtype=np.uint8)
    evaluated = _paint(image, owner, vertices, faces, mesh, colour_of)
    covered = owner >= 0
    dilated = dilate(image, covered, padding)
    write_bytes(output_glb, _glb_bytes(vertices, faces, mesh, image))
    return BakeReport(evaluated / texture_size**2, evaluated, dilated)


def _checked(vertices: Any, faces: Any, texture_size: int, padding: int, file: str | Path) -> tuple[Array, Array]:
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    repair = "Check the mesh; ns-xscale loads only meshes without these faults."
    if vertices.ndim != 2 or vertices.shape[1:] != (3,) or faces.ndim != 2 or faces.shape[1:] != (3,):
        raise DataError(file, "mesh", f"shapes {vertices.shape} and {faces.shape} are not [V, 3] and [F, 3].", repair)
    if len(faces) == 0 or not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(file, "mesh", "no faces, a vertex that is not finite, or an index out of range.", repair)
    if len(faces) > MAX_FACES:
        raise DataError(
            file,
            "mesh",
            f"{len(faces)} faces are too many to unwrap (limit {MAX_FACES}).",
            "Apply decimation first (e.g. quadric edge collapse in MeshLab or Open3D); the texture keeps the detail.",
        )
    if not 16 <= texture_size <= MAX_TEXTURE or not 1 <= padding <= texture_size // 8:
        raise DataError(
            file,
            "options",
            f"texture size {texture_size} with padding {padding} is out of range.",
            f"Choose 16 to {MAX_TEXTURE} texels and a padding from 1 to an eighth of that.",
        )
    return vertices, faces


def rasterize(corners: Float[Array, "F 3 2"], size: int) -> Int32[Array, "S S"]:
    """Face that owns each texel, -1 for none.

    A face owns the texels whose centres it contains. One too small or thin to contain a centre gets the texel under
    its centroid if that is free; if it is not, a neighbour on the same chart has coloured that texel. So the texel
    under every face's centroid is owned. Where faces meet in a centre, the last one wins.

    Args:
        corners: texture coordinates of each face, texels; parts outside the texture are cut off.
        size: side of the texture.
    """
    owner = np.full((size, size), -1, dtype=np.int32)
    for faces, rows, first, count in _spans(corners, size):
        start = np.repeat(np.cumsum(count) - count, count)
        columns = np.arange(count.sum()) - start + np.repeat(first, count)
        owner[np.repeat(rows, count), columns] = np.repeat(faces, count)
    centre = np.clip(np.floor(corners.mean(axis=1)).astype(np.int64), 0, size - 1)
    free = np.flatnonzero(owner[centre[:, 1], centre[:, 0]] < 0)
    owner[centre[free, 1], centre[free, 0]] = free
    return owner


def _spans(corners: Array, size: int) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Runs of texel centres inside faces: (face, row, first column, count), in chunks of bounded size.

    On the line y = const each edge bounds x from one side, so a run is an intersection of three half-lines; its cost
    does not depend on how thin or large the face's bounding box is.
    """
    low = np.ceil(corners[..., 1].min(axis=1) - 0.5).clip(0, size).astype(np.int64)
    high = np.floor(corners[..., 1].max(axis=1) - 0.5).clip(-1, size - 1).astype(np.int64)
    heights = (high - low + 1).clip(0)
    group = np.cumsum(heights) // max(_TEXELS_PER_CHUNK // 16, 1)
    for faces in np.split(np.arange(len(corners)), np.flatnonzero(np.diff(group)) + 1):
        height = heights[faces]
        face = np.repeat(faces, height)
        row = np.arange(height.sum()) - np.repeat(np.cumsum(height) - height, height) + np.repeat(low[faces], height)
        first, count = _run(corners[face], row + 0.5, size)
        keep = count > 0
        face, row, first, count = face[keep], row[keep], first[keep], count[keep]
        # A run is at most `size` long, so chunks stay near the limit.
        cuts = np.flatnonzero(np.diff(np.cumsum(count) // _TEXELS_PER_CHUNK)) + 1
        yield from zip(*(np.split(part, cuts) for part in (face, row, first, count)), strict=True)


def _run(corners: Float[Array, "R 3 2"], y: Float[Array, "R"], size: int) -> tuple[Array, Array]:
    """First column and number of texel centres of each face on its line."""
    left, right = np.full(len(y), -np.inf), np.full(len(y), np.inf)
    edge = np.roll(corners, -1, axis=1) - corners
    area = edge[:, 0, 0] * edge[:, 1, 1] - edge[:, 0, 1] * edge[:, 1, 0]
    sign = np.sign(area)
    for i in range(3):
        # Inside: slope * (x - x0) <= rise, after orienting the face. A horizontal edge bounds only y: see `_spans`.
        slope = sign * edge[:, i, 1]
        rise = sign * edge[:, i, 0] * (y - corners[:, i, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = corners[:, i, 0] + rise / slope
        left = np.where(slope < 0, np.maximum(left, crossing), left)
        right = np.where(slope > 0, np.minimum(right, crossing), right)
    inside = (area != 0) & (left <= right)
    first = np.ceil(np.where(inside, left, 0.0).clip(-1, size) - 0.5).clip(0).astype(np.int64)
    last = np.floor(np.where(inside, right, -1.0).clip(-1, size) - 0.5).clip(-1, size - 1).astype(np.int64)
    return first, np.where(inside, (last - first + 1).clip(0), 0)


def barycentric(points: Float[Array, "N 2"], corners: Float[Array, "N 3 2"]) -> Float[Array, "N 3"]:
    """Weights of the corners, clipped to the triangle; equal thirds for a triangle without area."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]

    def cross(u: Array, v: Array) -> Array:
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    weights = np.stack([cross(b - points, c - points), cross(c - points, a - points), cross(a - points, b - points)], 1)
    area = cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weights = (weights / area[:, None]).clip(0.0, 1.0)
    weights[~np.isfinite(weights).all(axis=1)] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)


def _normals(vertices: Array, faces: Array) -> tuple[Float[Array, "F 3"], Float[Array, "V 3"]]:
    """Face normals (zero for faces without area) and area-weighted vertex normals."""
    corners = vertices[faces]
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    index = faces.reshape(-1)
    total = np.stack([np.bincount(index, np.repeat(doubled[:, k], 3), len(vertices)) for k in range(3)], axis=1)
    return _unit(doubled), _unit(total)


def _unit(vectors: Array) -> Array:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)


def _paint(
    image: UInt8[Array, "S S 3"],
    owner: Int32[Array, "S S"],
    vertices: Array,
    faces: Array,
    mesh: Unwrapped,
    colour_of: ColourOf,
) -> int:
    """Fill the owned texels; how many there are."""
    face_normals, vertex_normals = _normals(vertices, faces)
    size, evaluated = len(owner), 0
    flat_image, flat_owner = image.reshape(-1, 3), owner.reshape(-1)
    for start in range(0, size * size, _TEXELS_PER_CHUNK):
        found = start + np.flatnonzero(flat_owner[start : start + _TEXELS_PER_CHUNK] >= 0)
        for texels in (found[i : i + POINTS_PER_CALL] for i in range(0, len(found), POINTS_PER_CALL)):
            face = flat_owner[texels].astype(np.int64)
            centres = np.stack([texels % size, texels // size], axis=1) + 0.5
            weights = barycentric(centres, mesh.texels[mesh.faces[face]])[..., None]
            points = (weights * vertices[faces[face]]).sum(axis=1)
            normals = _unit((weights * vertex_normals[faces[face]]).sum(axis=1))
            # Opposite faces of a thin sheet cancel at shared vertices; the face itself knows its side.
            normals = np.where(np.any(normals, axis=1, keepdims=True), normals, face_normals[face])
            rgb = np.asarray(colour_of(points, normals), dtype=np.float64)
            if rgb.shape != points.shape or not np.isfinite(rgb).all():
                raise ValueError(f"colour_of must return finite [{len(points)}, 3], not {list(rgb.shape)}")
            flat_image[texels] = np.round(255.0 * rgb.clip(0.0, 1.0)).astype(np.uint8)
            evaluated += len(texels)
    return evaluated


def dilate(image: UInt8[Array, "S S 3"], covered: Bool[Array, "S S"], padding: int) -> int:
    """Continue the covered texels' colours ``padding`` texels into the gaps, and fill the rest with the mean colour.

    Bilinear filtering reads one texel beyond a chart, mip maps more. Each round gives the free 8-neighbours of what is
    covered the mean of their covered neighbours. Both arrays are changed in place.

    Returns:
        The number of texels added.
    """
    size, added = len(covered), 0
    flat_image, flat = image.reshape(-1, 3), covered.reshape(-1)
    mean = flat_image[flat].mean(axis=0, dtype=np.float64).round() if flat.any() else np.zeros(3)
    inner = np.zeros_like(covered)
    # Only covered texels beside a free one can spread.
    inner[1:-1, 1:-1] = covered[:-2, 1:-1] & covered[2:, 1:-1] & covered[1:-1, :-2] & covered[1:-1, 2:]
    front = np.flatnonzero(covered & ~inner)
    for _ in range(padding):
        near, valid = _neighbours(front, size)
        candidates = np.unique(near[valid])
        candidates = candidates[~flat[candidates]]
        if len(candidates) == 0:
            break
        near, valid = _neighbours(candidates, size)
        weight = (valid & flat[near]).astype(np.float64)
        colour = np.einsum("kn,knc->nc", weight, flat_image[near]) / weight.sum(axis=0)[:, None]
        flat_image[candidates] = colour.round().astype(np.uint8)
        flat[candidates] = True
        added += len(candidates)
        front = candidates
    flat_image[~flat] = mean.astype(np.uint8)
    return added


def _neighbours(texels: Int[Array, "N"], size: int) -> tuple[Int[Array, "8 N"], Bool[Array, "8 N"]]:
    """Flat indices of the eight neighbours (clipped), and which lie in the texture."""
    row, column = texels // size + _NEIGHBOURS[:, :1], texels % size + _NEIGHBOURS[:, 1:]
    valid = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    return row.clip(0, size - 1) * size + column.clip(0, size - 1), valid


def _glb_bytes(vertices: Array, faces: Array, mesh: Unwrapped, image: UInt8[Array, "S S 3"]) -> bytes:
    uv = mesh.texels / len(image)
    # trimesh keeps v upwards in memory and turns it to glTF's downwards when it writes.
    uv[:, 1] = 1.0 - uv[:, 1]
    material = PBRMaterial(
        baseColorTexture=Image.fromarray(image), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    textured = trimesh.Trimesh(
        vertices[mesh.source],
        mesh.faces,
        vertex_normals=_normals(vertices, faces)[1][mesh.source],
        visual=TextureVisuals(uv=uv, material=material),
        process=False,
    )
    data = textured.export(file_type="glb", include_normals=True)
    if not isinstance(data, bytes):
        raise TypeError(f"trimesh gave {type(data).__name__} for a GLB")
    return data


def write_mesh_nerfstudio(path: str | Path, vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> None:
    """Write a mesh as binary little-endian PLY, atomically: for authoring camera paths against it (spec xscale 5).

    Args:
        path: the file, usually ``mesh_nerfstudio.ply``.
        vertices: nerfstudio's (dataparser) space; written as float32.
        faces: indices, written as int32.

    Raises:
        DataError: wrong shapes, numbers that are not finite, or indices out of range.
    """
    points, triangles = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    shaped = points.ndim == 2 and points.shape[1:] == (3,) and triangles.ndim == 2 and triangles.shape[1:] == (3,)
    in_range = shaped and (triangles.size == 0 or (triangles.min() >= 0 and triangles.max() < len(points)))
    if not in_range or not np.isfinite(points).all():
        raise DataError(path, "mesh", f"shapes {points.shape} and {triangles.shape}: not a finite triangle mesh.",
                        "Pass vertices [V, 3] and valid indices [F, 3].")  # fmt: skip
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    records = np.empty(len(triangles), dtype=[("count", "u1"), ("corners", "<i4", (3,))])
    records["count"], records["corners"] = 3, triangles
    write_bytes(path, header.encode("ascii") + points.astype("<f4").tobytes() + records.tobytes())
