"""Which photos a point's colour is blended from (spec r4dv 4.4). Pure numpy, deterministic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

Metric = Literal["distance", "angle"]


def rank_sources(
    target_centre: Float[np.ndarray, "3"],
    source_centres: Float[np.ndarray, "v 3"],
    metric: Metric = "distance",
    scene_centre: Float[np.ndarray, "3"] | None = None,
) -> list[int]:
    """All rows of ``source_centres``, the most suitable first; equal ones in row order.

    Args:
        target_centre: camera centre of the view to render, world.
        source_centres: camera centres of the photos, world, at the same moment.
        metric: "distance" between the centres (the original's), or "angle" between the lines of sight that meet in
            ``scene_centre`` (better where cameras stand at different distances).
        scene_centre: world point that the rig looks at; needed for "angle".

    Raises:
        ValueError: unknown metric, or "angle" without a scene centre.
    """
    target = np.asarray(target_centre, np.float64).reshape(3)
    centres = np.asarray(source_centres, np.float64).reshape(-1, 3)
    if metric == "distance":
        badness = np.linalg.norm(centres - target, axis=1)
    elif metric == "angle":
        if scene_centre is None:
            raise ValueError("the angle metric needs the scene's centre")
        middle = np.asarray(scene_centre, np.float64).reshape(3)
        badness = _angles(target - middle, centres - middle)
    else:
        raise ValueError(f"unknown metric {metric!r}: use 'distance' or 'angle'")
    return np.argsort(badness, kind="stable").tolist()


def _angles(ray: Float[np.ndarray, "3"], others: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v"]:
    """Angles in [0, pi]; atan2 keeps small ones apart, which arccos of a rounded cosine does not."""
    return np.arctan2(np.linalg.norm(np.cross(others, ray), axis=1), others @ ray)


def choose_sources(
    target_centre: Float[np.ndarray, "3"],
    source_centres: Float[np.ndarray, "v 3"],
    count: int,
    metric: Metric = "distance",
    scene_centre: Float[np.ndarray, "3"] | None = None,
    exclude: Collection[int] = (),
) -> list[int]:
    """The ``count`` most suitable rows of ``source_centres``, best first; fewer where there are fewer.

    Args:
        exclude: rows that may not be used (the target's own photo in an evaluation).

    Other arguments and errors as in `rank_sources`.
    """
    banned = set(exclude)
    ranked = rank_sources(target_centre, source_centres, metric, scene_centre)
    return [row for row in ranked if row not in banned][:count]


def own_rows(views: Sequence[int], view: int | None) -> list[int]:
    """Rows of a recording's camera among the photos, which may not colour its own picture (spec r4dv 4.4).

    Args:
        views: the camera of every photo.
        view: the camera that is drawn; None for any other camera, which may use all.

    Returns:
        none where there is no other photo.
    """
    return [row for row, each in enumerate(views) if each == view and len(views) > 1]


def training_sources(
    target: int,
    source_centres: Float[np.ndarray, "v 3"],
    count: int,
    rng: np.random.Generator,
    *,
    extra: int = 1,
    keep_target: float = 0.1,
    metric: Metric = "distance",
    scene_centre: Float[np.ndarray, "3"] | None = None,
) -> list[int]:
    """A random choice of ``count`` of the nearest ``count + extra`` photos, for a training step.

    The target's own photo is taken out of the pool first, except with probability ``keep_target``: a network that
    always sees the answer would learn to copy it. It also stays when there is no other photo.

    Args:
        target: row of ``source_centres`` that is rendered.
        rng: the only source of randomness; always advanced by the same number of draws.

    Other arguments and errors as in `rank_sources`. Returns rows, nearest first; fewer where there are fewer views.
    """
    centres = np.asarray(source_centres, np.float64).reshape(-1, 3)
    drop, order = rng.random() >= keep_target, rng.random(len(centres))
    exclude = (target,) if drop and len(centres) > 1 else ()
    pool = choose_sources(centres[target], centres, count + extra, metric, scene_centre, exclude)
    chosen = set(sorted(pool, key=lambda row: order[row])[:count])
    return [row for row in pool if row in chosen]
