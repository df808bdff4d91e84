"""The shapes of the demo scenes: a monument on a round plaza, and a quad. World z is up; lengths in scene units."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray

PLAZA_RADIUS = 3.0
PLAZA_DEPTH = 0.3
PLINTH_TOP = 0.62
PLINTH_STEPS = ((0.98, 0.0, 0.16), (0.78, 0.16, 0.54), (0.86, 0.54, PLINTH_TOP))
"""Square steps: half side, lower and upper height."""
ORB_RADIUS = 0.74
ORB_CENTRE = (0.0, 0.0, PLINTH_TOP + 0.70)
ORB_RIDGES = 7
ORB_TWIST = 2.4
"""Radians by which the ridges turn from the equator to a pole."""
COLUMNS = 6
COLUMN_DISTANCE = 2.3
COLUMN_PROFILE = ((0.24, 0.0), (0.24, 0.09), (0.17, 0.13), (0.14, 1.12), (0.21, 1.18), (0.21, 1.25), (0.0, 1.25))
"""(radius, height) corners from the foot to the top."""
FINIAL_RADIUS = 0.17


class Surface(NamedTuple):
    """A triangle mesh with one shading normal per vertex; creases are vertices that occur twice."""

    vertices: Float[Array, "v 3"]
    faces: Int[Array, "f 3"]
    normals: Float[Array, "v 3"]


def column_centres() -> Float[Array, "n 2"]:
    """Ground positions of the columns; none of them stands on a coordinate axis."""
    angles = 2 * np.pi * (np.arange(COLUMNS) + 0.5) / COLUMNS
    return COLUMN_DISTANCE * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _with_normals(vertices: Array, faces: Array) -> Surface:
    """Area-weighted vertex normals."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], across)
    return Surface(vertices, faces, normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-30))


def join(surfaces: Iterable[Surface]) -> Surface:
    """One mesh of several; vertices are not merged, so creases stay."""
    surfaces = list(surfaces)
    starts = np.cumsum([0, *(len(surface.vertices) for surface in surfaces)])
    return Surface(
        np.concatenate([surface.vertices for surface in surfaces]),
        np.concatenate([surface.faces + start for surface, start in zip(surfaces, starts, strict=False)]),
        np.concatenate([surface.normals for surface in surfaces]),
    )


def _moved(surface: Surface, offset: Iterable[float]) -> Surface:
    return surface._replace(vertices=surface.vertices + np.asarray([*offset], dtype=np.float64))


def grid(corners: Float[Array, "4 3"], columns: int, rows: int) -> Surface:
    """A flat four-sided patch; the corners go round counter-clockwise as seen from its front."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    u, v = u.reshape(-1, 1), v.reshape(-1, 1)
    a, b, c, d = np.asarray(corners, dtype=np.float64)
    vertices = (1 - u) * (1 - v) * a + u * (1 - v) * b + u * v * c + (1 - u) * v * d
    return _with_normals(vertices, _grid_faces(columns, rows))


def _grid_faces(columns: int, rows: int) -> Int[Array, "f 3"]:
    """Two triangles per cell of a (rows + 1) x (columns + 1) vertex grid."""
    first = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).reshape(-1, 1)
    lower = first + np.array([0, 1, columns + 2])
    upper = first + np.array([0, columns + 2, columns + 1])
    return np.concatenate([lower, upper]).astype(np.int64)


def box(half: float, bottom: float, top: float) -> Surface:
    """A square block around the z axis without its underside (nothing sees it)."""
    corners = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    low = np.column_stack([corners, np.full(4, bottom)])
    high = np.column_stack([corners, np.full(4, top)])
    sides = [grid(np.array([low[k], low[k - 3], high[k - 3], high[k]]), 1, 1) for k in range(4)]
    return join([*sides, grid(high, 1, 1)])


def revolve(profile: Iterable[tuple[float, float]], segments: int) -> Surface:
    """A profile of (radius, height) corners turned round the z axis, creased at its corners.

    The profile runs upwards with the body on its left side, which makes the normals point out.
    """
    angles = np.linspace(0.0, 2 * np.pi, segments + 1)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    bands = []
    for (r0, z0), (r1, z1) in pairwise(profile):
        lower = np.column_stack([r0 * ring, np.full(segments + 1, z0)])
        upper = np.column_stack([r1 * ring, np.full(segments + 1, z1)])
        faces = _grid_faces(segments, 1)
        vertices = np.concatenate([lower, upper])
        a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
        # Where the profile meets the axis one of a cell's two triangles has no area.
        band = _with_normals(vertices, faces[np.linalg.norm(np.cross(b - a, c - a), axis=-1) > 1e-12])
        seam = band.normals.reshape(2, segments + 1, 3)
        seam[:, [0, -1]] = seam[:, [0]] + seam[:, [-1]]  # first and last vertex coincide: no visible seam
        length = np.linalg.norm(seam, axis=-1, keepdims=True)
        bands.append(band._replace(normals=(seam / np.maximum(length, 1e-30)).reshape(-1, 3)))
    return join(bands)


def sphere_directions(cells: int) -> tuple[Float[Array, "v 3"], Int[Array, "f 3"]]:
    """Unit directions of a cube sphere with ``cells`` per cube edge (12 cells^2 faces), shared along the edges."""
    line = np.tan(np.linspace(-np.pi / 4, np.pi / 4, cells + 1))  # evens out the cell sizes
    u, v = (x.reshape(-1) for x in np.meshgrid(line, line))
    one = np.ones_like(u)
    sides = [(one, u, v), (-one, -u, v), (-u, one, v), (u, -one, v), (-v, u, one), (v, u, -one)]
    points = np.concatenate([np.stack(side, axis=-1) for side in sides])
    faces = np.concatenate([_grid_faces(cells, cells) + k * (cells + 1) ** 2 for k in range(6)])
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    _, keep, renumber = np.unique(np.round(points, 9), axis=0, return_index=True, return_inverse=True)
    return points[keep], renumber.reshape(-1)[faces]


def orb_radius(directions: Float[Array, "n 3"], seed: int) -> Float[Array, "n"]:
    """Radius of the orb along unit directions: twisted ridges that fade at the poles, and irregular bumps."""
    rng = np.random.default_rng([seed, 1])
    x, y, z = directions.T
    ridge = np.cos(ORB_RIDGES * np.arctan2(y, x) + ORB_RIDGES * ORB_TWIST / 4 * z)
    radius = 1.0 + 0.085 * ridge * (1.0 - z * z)
    for amplitude, low, high, waves in ((0.012, 3.0, 6.0, 6), (0.004, 10.0, 16.0, 12)):
        axes = rng.normal(size=(waves, 3))
        axes *= rng.uniform(low, high, size=(waves, 1)) / np.linalg.norm(axes, axis=-1, keepdims=True)
        radius += amplitude * np.sin(directions @ axes.T + rng.uniform(0, 2 * np.pi, waves)).sum(axis=-1)
    return ORB_RADIUS * radius


def monument(mesh_faces: int, seed: int) -> Surface:
    """The orb on its plinth, columns and plaza; about ``mesh_faces`` triangles, most of them on the orb."""
    segments = int(np.clip(np.sqrt(mesh_faces) / 2.5, 12, 96)) // 2 * 2
    plaza_profile = (
        (0.0, -PLAZA_DEPTH),
        (PLAZA_RADIUS - 0.35, -PLAZA_DEPTH),
        (PLAZA_RADIUS, -0.05),
        (PLAZA_RADIUS, 0.0),
        (0.0, 0.0),
    )
    column = revolve(COLUMN_PROFILE, segments // 2)
    directions, ball_faces = sphere_directions(max(4, segments // 8))
    ball = Surface(FINIAL_RADIUS * directions, ball_faces, directions)
    column = join([column, _moved(ball, (0.0, 0.0, COLUMN_PROFILE[-1][1] + 0.85 * FINIAL_RADIUS))])
    surroundings = join(
        [
            revolve(plaza_profile, segments),
            *(box(*step) for step in PLINTH_STEPS),
            *(_moved(column, (x, y, 0.0)) for x, y in column_centres()),
        ]
    )
    left = mesh_faces - len(surroundings.faces)
    directions, faces = sphere_directions(max(8, int(np.sqrt(max(left, 0) / 12))))
    orb = _with_normals(directions * orb_radius(directions, seed)[:, None], faces)
    return join([surroundings, _moved(orb, ORB_CENTRE)])


def quad(mesh_faces: int) -> Surface:
    """The square [-1, 1]^2 in the plane z = 0, facing up."""
    cells = max(1, int(np.sqrt(mesh_faces / 2)))
    corners = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    return grid(corners, cells, cells)
