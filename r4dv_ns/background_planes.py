"""The large planes of a scene, from points that cameras agree on: walls and floors that go on where nobody can tell.

Planes are found one after the other by random trials over three points that lie near one another, each time the one
with most points near it (RANSAC; Fischler and Bolles 1981); their points are then left out.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from scipy.spatial import KDTree

Array = np.ndarray
TRIALS = 300
"""Triples that are tried for each plane."""
AROUND = 300
"""Neighbours that the second and third point of a trial are among."""
ASKED = 6000
"""Points that count trials."""
FITS = 3
"""Times that a plane is fitted to the points near it."""


def main_planes(
    points: Float64[Array, "n 3"],
    slack: Float64[Array, "n"],
    *,
    most: int = 24,
    share: float = 0.004,
    seed: int = 0,
) -> Float64[Array, "m 4"]:
    """Planes (a, b, c, d) with unit normals, ``a x + b y + c z = d``; those with most points first.

    Args:
        points: world.
        slack: how far each point may lie from its plane; world units.
        most: planes.
        share: of all points that a plane must hold.
        seed: of the trials.
    """
    rng = np.random.default_rng([seed, 33])
    if len(points) > ASKED:
        rows = np.sort(rng.choice(len(points), ASKED, replace=False))
        points, slack = points[rows], slack[rows]
    left, least = np.ones(len(points), bool), max(share * len(points), 6)
    planes = []
    while len(planes) < most and np.count_nonzero(left) >= least:
        plane = _best(points[left], slack[left], rng)
        near = near_plane(points, slack, plane) & left
        if np.count_nonzero(near) < least:
            break
        planes.append(plane)
        # What lies a little farther off would give the same plane again.
        left &= ~near_plane(points, 2 * slack, plane)
    return np.array(planes).reshape(-1, 4)


def near_plane(
    points: Float64[Array, "n 3"], slack: Float64[Array, "n"], plane: Float64[Array, "4"]
) -> Bool[Array, "n"]:
    """Points on a plane, up to their slack."""
    return np.abs(points @ plane[:3] - plane[3]) < slack


def _best(points: Float64[Array, "n 3"], slack: Float64[Array, "n"], rng: np.random.Generator) -> Float64[Array, "4"]:
    """The plane of the best trial, fitted to its points."""
    first = rng.integers(0, len(points), TRIALS)
    count = min(AROUND, len(points))
    _, near = KDTree(points).query(points[first], k=count)
    near = np.asarray(near).reshape(TRIALS, count)
    second, third = (near[np.arange(TRIALS), rng.integers(0, count, TRIALS)] for _ in range(2))
    normals = np.cross(points[second] - points[first], points[third] - points[first])
    length = np.linalg.norm(normals, axis=1)
    usable = length > 1e-12
    if not usable.any():
        return np.array([0.0, 0.0, 1.0, np.inf])
    normals, origins = normals[usable] / length[usable, None], points[first][usable]
    offsets = np.einsum("nc,nc->n", normals, origins)
    votes = (np.abs(points @ normals.T - offsets) < slack[:, None]).sum(axis=0)
    chosen = int(votes.argmax())
    plane = np.append(normals[chosen], offsets[chosen])
    for _ in range(FITS):
        near_by = near_plane(points, slack, plane)
        if np.count_nonzero(near_by) < 3:
            break
        plane = fitted(points[near_by], 1 / slack[near_by])
    return plane


def fitted(points: Float64[Array, "n 3"], weights: Float64[Array, "n"]) -> Float64[Array, "4"]:
    """The plane with the least sum of squared weighted distances to points."""
    square = np.square(weights)
    middle = (square[:, None] * points).sum(axis=0) / square.sum()
    _, _, directions = np.linalg.svd((points - middle) * weights[:, None], full_matrices=False)
    normal = directions[-1]
    return np.append(normal, normal @ middle)
