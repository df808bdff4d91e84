"""Unwrap a mesh into one square texture: charts by xatlas, called so that it neither crashes the caller nor crawls.

Three properties of xatlas 0.0.11 shape this file. It can die with a segmentation fault (an icosphere of 81 920 faces
does it), so it runs in a child process. Its charts grow slower than linearly in their size and the same fault needs a
large chart, so the mesh is cut into blocks of `BLOCK_FACES` first (a 175 k-face scan: 9 s instead of more than three
minutes). It ignores faces of area below 1.2e-7 in whatever units the mesh has, so the mesh is scaled to a mean face
area of one.

The child runs this very file as a script; hence no import from this package at module level.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

BLOCK_FACES = 1000
# xatlas overshoots the resolution it is asked for by 1.2 to 1.4; asking for less makes the final rescaling nearly 1.
_OVERSHOOT = 1.3
_TIMEOUT_SECONDS = 3600
_UNASSIGNED = np.uint32(0xFFFFFFFF)


class Unwrapped(NamedTuple):
    """A mesh whose vertices are split along chart borders.

    Attributes:
        source: original vertex of each new vertex.
        faces: indices into the new vertices, in the order of the original faces.
        texels: position in the texture, texels, (0, 0) at the outer corner of the top-left one, y down.
    """

    source: Int[Array, "U"]
    faces: Int[Array, "F 3"]
    texels: Float[Array, "U 2"]


def split_faces(centroids: Float[Array, "F 3"], limit: int) -> list[Int[Array, "K"]]:
    """Cut faces into compact blocks of at most ``limit``: median splits along the longest side of each block's box."""
    blocks, pending = [], [np.arange(len(centroids))]
    while pending:
        block = pending.pop()
        if len(block) <= limit:
            blocks.append(np.sort(block))
            continue
        points = centroids[block]
        half = len(block) // 2
        order = np.argpartition(points[:, np.ptp(points, axis=0).argmax()], half)
        pending += [block[order[:half]], block[order[half:]]]
    return blocks


def unwrap(
    vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"], texture_size: int, padding: int, file: str | Path
) -> Unwrapped:
    """Give every face a place in a square texture, charts ``padding`` texels apart.

    Args:
        vertices: finite; any unit, any offset.
        faces: valid indices, at least one face.
        texture_size: side of the texture, texels.
        padding: free texels between charts.
        file: what the errors name.

    Raises:
        DataError: xatlas cannot unwrap this mesh, or its charts do not fit the texture.
    """
    from core_ns.errors import DataError

    with tempfile.TemporaryDirectory(prefix="xscale-unwrap-") as folder:
        source, target = Path(folder) / "mesh.npz", Path(folder) / "atlas.npz"
        np.savez(
            source, vertices=vertices, faces=faces, resolution=max(int(texture_size / _OVERSHOOT), 1), padding=padding
        )
        # -P keeps this folder off the child's module path: a module here must not shadow one of numpy's imports.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), str(source), str(target)]
        remedy = "Repair the mesh (non-manifold or sliver faces) or decimate it, then bake again."
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DataError(file, "unwrapping", "xatlas did not finish within an hour.", remedy) from error
        if child.returncode != 0 or not target.is_file():
            detail = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(file, "unwrapping", f"xatlas failed, exit code {child.returncode}: {detail}.", remedy)
        with np.load(target) as archive:
            result, size = Unwrapped(archive["source"], archive["faces"], archive["texels"]), int(archive["size"])
    scale = texture_size / size
    if padding * scale < 1.0:
        raise DataError(
            file,
            "unwrapping",
            f"The charts need a texture of about {size} texels; at {texture_size} they would bleed into each other.",
            "Choose a larger texture size or decimate the mesh.",
        )
    return _place_ignored(result._replace(texels=result.texels * scale), len(vertices))


def _place_ignored(mesh: Unwrapped, vertex_count: int) -> Unwrapped:
    """Give faces that xatlas ignored (area near zero; NaN texels) the texel of a corner they share with a neighbour.

    Their colour is then that corner's, which is all a face without area can show. A face that no neighbour touches
    keeps the texture's centre.
    """
    lost = np.isnan(mesh.texels[:, 0])
    if not lost.any():
        return mesh
    known = np.full((vertex_count, 2), np.nan)
    known[mesh.source[~lost]] = mesh.texels[~lost]
    texels, faces, source = [mesh.texels], mesh.faces.copy(), [mesh.source]
    bad = np.flatnonzero(lost[mesh.faces].any(axis=1))
    corners = known[mesh.source[mesh.faces[bad]]]
    usable = ~np.isnan(corners[..., 0])
    first = usable.argmax(axis=1)
    place = corners[np.arange(len(bad)), first]
    place[~usable.any(axis=1)] = np.nanmean(known, axis=0) if not lost.all() else 0.5
    faces[bad] = len(mesh.texels) + np.arange(3 * len(bad)).reshape(-1, 3)
    texels.append(np.repeat(place, 3, axis=0))
    source.append(mesh.source[mesh.faces[bad]].reshape(-1))
    all_texels, all_source = np.concatenate(texels), np.concatenate(source)
    used = np.unique(faces)
    renumber = np.zeros(len(all_texels), dtype=np.int64)
    renumber[used] = np.arange(len(used))
    return Unwrapped(all_source[used], renumber[faces], all_texels[used])


def _run_xatlas(vertices: Array, faces: Array, resolution: int, padding: int) -> tuple[Unwrapped, int]:
    """The child's work; texels of ignored faces are NaN; also the side of the square the atlas needs."""
    import xatlas

    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    scale = 1.0 / np.sqrt(area.mean()) if area.mean() > 0 else 1.0
    local = ((vertices - vertices.mean(axis=0)) * scale).astype(np.float32)
    atlas = xatlas.Atlas()
    blocks = split_faces(corners.mean(axis=1), BLOCK_FACES)
    used = []
    for block in blocks:
        ids, indices = np.unique(faces[block], return_inverse=True)
        atlas.add_mesh(local[ids], indices.reshape(-1, 3).astype(np.uint32))
        used.append(ids)
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = resolution, padding, True
    atlas.generate(pack_options=options)
    if atlas.atlas_count != 1:
        raise RuntimeError(f"{atlas.atlas_count} textures instead of one")
    size = np.array([atlas.width, atlas.height], dtype=np.float64)
    source, texels, out = [], [], np.empty(faces.shape, dtype=np.int64)
    count = 0
    for number, (block, ids) in enumerate(zip(blocks, used, strict=True)):
        mapping, indices, uv = atlas[number]
        chart_of_vertex = atlas.get_mesh_vertex_assignment(number)[0]
        place = uv.astype(np.float64) * size
        place[chart_of_vertex == _UNASSIGNED] = np.nan
        out[block] = indices.astype(np.int64) + count
        source.append(ids[mapping])
        texels.append(place)
        count += len(mapping)
    return Unwrapped(np.concatenate(source), out, np.concatenate(texels)), int(size.max())


def _child(source: str, target: str) -> None:
    with np.load(source) as archive:
        arguments = archive["vertices"], archive["faces"], int(archive["resolution"]), int(archive["padding"])
    mesh, size = _run_xatlas(*arguments)
    np.savez(target, source=mesh.source, faces=mesh.faces, texels=mesh.texels, size=size)


if __name__ == "__main__":
    _child(*sys.argv[1:])
