"""How far the background is, from photos alone: where neighbouring cameras see the same (spec r4dv 3.4 c).

First, for every training camera, planes parallel to its picture are moved through the scene evenly in 1 / depth; the
pictures of its neighbours, projected by way of each plane, are compared with its own (a plane sweep; Collins 1996), and
the depths that agree best are chosen smoothly. Depths on which cameras agree give the scene's large planes. Then every
pixel chooses among these planes and its own depth, by the same comparison: a wall of which two cameras see a part goes
on where one sees it alone, instead of bulging.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from r4dv_ns.background_depth import DepthView, confirmations, contradictions, neighbours
from r4dv_ns.background_labels import between, summed_costs
from r4dv_ns.background_planes import main_planes
from r4dv_ns.background_stills import Still

Array = np.ndarray
OTHERS = 4
"""Neighbours that a camera is compared with."""
WINDOW = 7
"""Pixels across of the window that must agree."""
TOLERANCE = 40.0
"""Difference of colours (of 255, mean over the channels) from which on pictures simply disagree."""
UNSEEN = 14.0
"""Cost of what no neighbour sees: more than of what agrees, less than of what does not."""
NEARER = 3.0
"""Added to that for the nearest depth, less for those behind it: what nobody says anything about is rather far."""
SINGLE = 2.0
"""Added where one neighbour sees it alone."""
STEP, CHANGE = 1.0, 10.0
"""What it costs neighbouring pixels to lie one depth, or anything more, apart."""
EDGE = 8.0
"""Difference of neighbouring pixels' colours at which a change costs half."""
OWN = 3.0
"""Added to a depth of a pixel's own, that planes compete with."""
AGAINST = 10.0
"""Added for each of up to two cameras that look through a place."""
SLACK = 0.015
"""How far points may lie from their plane, of their distance from the camera."""
MOST_DEPTHS = 256


def found_depths(
    stills: Items[Still],
    ranges: Items[tuple[float, float]],
    depths: int | None = None,
    seed: int = 0,
    margin: int = 0,
) -> tuple[list[DepthView], list[DepthView]]:
    """A depth for every pixel, world units.

    Args:
        stills: of all cameras.
        ranges: nearest and farthest depth of each.
        depths: compared in the sweep; None: so many that a picture moves by a pixel from one to the next.
        seed: of random trials.
        margin: pixels around the pictures in which planes go on.

    Returns:
        depths of the pixels that show the background, 0 where none lies on a plane or is confirmed by another camera;
        and of those around the pictures and behind what hides it, where one of the scene's large planes goes on.
    """
    pairs = [
        swept(stills, number, near_far, depths or depths_needed(stills, number, near_far))
        for number, near_far in enumerate(ranges)
    ]
    first = [view for view, _ in pairs]
    sure = [agreed_only(first, number) for number in range(len(first))]
    planes = scene_planes(sure, seed)
    if not len(planes):
        return sure, [view.nothing() for view in first]
    both = [on_planes(stills, number, pair, sure, planes, ranges[number], margin) for number, pair in enumerate(pairs)]
    return [shown for shown, _ in both], [beyond for _, beyond in both]


def depths_needed(stills: Items[Still], number: int, near_far: tuple[float, float]) -> int:
    """Depths between which a camera's neighbours' pictures move by about a pixel."""
    own = stills[number]
    views = [still.with_depth(np.zeros((0, 0))) for still in stills]
    apart = [np.linalg.norm(views[other].centre - views[number].centre) for other in neighbours(views, number, OTHERS)]
    moved = float(own.K[0, 0]) * float(np.median(apart or [0.0])) * (1 / near_far[0] - 1 / near_far[1])
    return int(np.clip(np.ceil(moved), 16, MOST_DEPTHS))


# ---------------------------------------------------------------------- costs


def matching_costs(own: Still, others: Items[Still], planes: Float64[Array, "n 3"]) -> Float32[Array, "h w n"]:
    """How differently neighbours see what lies on planes: mean absolute difference of colours over a window, to the
    better half of them.

    Args:
        planes: p with ``p . x = 1`` for points x in the axes of ``own``.
    """
    height, width = own.image.shape[:2]
    costs = np.empty((height, width, len(planes)), np.float32)
    for number, plane in enumerate(planes):
        costs[..., number] = _disagreement(own, others, plane)
    return costs


def _disagreement(own: Still, others: Items[Still], plane: Float64[Array, "3"]) -> Float32[Array, "h w"]:
    height, width = own.image.shape[:2]
    found = []
    # Pixel centres lie at +0.5, cv2 counts them from 0.
    shift = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    into_own = np.linalg.inv(own.K) @ np.linalg.inv(shift)
    corners = np.array([[0.0, 0.0, 1.0], [width, 0.0, 1.0], [0.0, height, 1.0], [width, height, 1.0]])
    for other in others:
        relative = other.w2c @ np.linalg.inv(own.w2c)
        back = shift @ other.K @ (relative[:3, :3] + np.outer(relative[:3, 3], plane)) @ into_own
        ahead = corners @ back[2]
        if (ahead <= 0).all():
            continue
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpPerspective(other.image, back, (width, height), flags=flags)
        seen = cv2.warpPerspective(other.valid.astype(np.float32), back, (width, height), flags=flags) > 0.99
        if (ahead <= 0).any():  # part of the plane lies behind the other camera
            rows, columns = np.mgrid[:height, :width]
            seen &= columns * back[2, 0] + rows * back[2, 1] + back[2, 2] > 0
        if not seen.any():
            continue
        difference = np.minimum(np.abs(image - own.image).mean(axis=2), TOLERANCE)
        usable = (seen & own.valid).astype(np.float32)
        total = cv2.boxFilter(difference * usable, -1, (WINDOW, WINDOW), normalize=False)
        count = cv2.boxFilter(usable, -1, (WINDOW, WINDOW), normalize=False)
        enough = (count > 0.4 * WINDOW**2) & seen
        found.append(np.where(enough, total / np.maximum(count, 1), np.inf))
    if not found:
        return np.full((height, width), UNSEEN, np.float32)
    ranked = np.sort(np.stack(found), axis=0)
    costs = np.where(np.isfinite(ranked[0]), ranked[0] + SINGLE, UNSEEN)
    if len(ranked) > 1:
        costs = np.where(np.isfinite(ranked[1]), ranked[:2].mean(axis=0), costs)
    return costs.astype(np.float32)


def change_costs(still: Still) -> Float32[Array, "h w"]:
    """What a change of depth costs at each pixel: less where the picture changes too."""
    grey = cv2.GaussianBlur(still.image.mean(axis=2), (0, 0), 1.0)
    down, across = np.gradient(grey)
    return (CHANGE / (1 + np.hypot(down, across) / EDGE)).astype(np.float32)


# ---------------------------------------------------------------------- depths


def swept(
    stills: Items[Still], number: int, near_far: tuple[float, float], depths: int
) -> tuple[DepthView, Float32[Array, "h w"]]:
    """Depths by planes parallel to a camera's picture, and what they cost (`matching_costs`)."""
    own, others = stills[number], _others(stills, number)
    inverse = np.linspace(1 / near_far[0], 1 / near_far[1], depths)
    planes = np.column_stack([np.zeros((depths, 2)), inverse])
    costs = matching_costs(own, others, planes)
    costs += (NEARER * np.linspace(1, 0, depths)).astype(np.float32)
    total = summed_costs(costs, change_costs(own), STEP)
    chosen = total.argmin(axis=2)
    depth = 1 / np.interp(between(total, chosen), np.arange(depths), inverse)
    cost = np.take_along_axis(costs, chosen[..., None], axis=2)[..., 0]
    return own.with_depth(np.where(own.valid, depth, 0.0)), cost


def _others(stills: Items[Still], number: int) -> list[Still]:
    views = [still.with_depth(np.zeros((0, 0))) for still in stills]
    return [stills[other] for other in neighbours(views, number, OTHERS)]


def agreed_only(views: list[DepthView], number: int) -> DepthView:
    """A view that knows those depths alone that another camera confirms."""
    view = views[number]
    votes = confirmations(views, number, neighbours(views, number, OTHERS))
    return DepthView(view.K, view.w2c, np.where(votes > 0, view.depth, 0.0), view.rgb)


def scene_planes(sure: list[DepthView], seed: int = 0) -> Float64[Array, "m 4"]:
    """Large planes of the world (`main_planes`) through depths that other cameras confirm."""
    points, slack = [], []
    for view in sure:
        rows, columns = np.nonzero(view.known)
        points.append(view.points(rows, columns))
        slack.append(SLACK * view.depth[rows, columns])
    everything, allowed = np.concatenate(points), np.concatenate(slack)
    free = contradictions(sure, everything) == 0
    return main_planes(everything[free], allowed[free], seed=seed)


def in_camera(planes: Float64[Array, "m 4"], still: Still) -> Float64[Array, "m 3"]:
    """World planes as `matching_costs` wants them; zeros for planes through the camera itself."""
    normals = planes[:, :3] @ still.w2c[:3, :3].T
    away = planes[:, 3] + normals @ still.w2c[:3, 3]
    return np.where(np.abs(away)[:, None] > 1e-9, normals / np.where(np.abs(away) > 1e-9, away, 1.0)[:, None], 0.0)


def on_planes(
    stills: Items[Still],
    number: int,
    found: tuple[DepthView, Float32[Array, "h w"]],
    sure: list[DepthView],
    planes: Float64[Array, "m 4"],
    near_far: tuple[float, float],
    margin: int = 0,
) -> tuple[DepthView, DepthView]:
    """Depths of one camera, each on one of the scene's planes or the one that was found before.

    Args:
        found: its depths so far, and their costs.
        sure: depths of all cameras that others confirm; what they look through is not there.
        planes: world.

    Returns:
        as of `found_depths`, the latter with the margin.
    """
    own, (view, cost) = stills[number].with_margin(margin), found
    cost = OWN + np.where(sure[number].known, cost, np.maximum(cost, UNSEEN))
    cost = np.pad(cost, margin, constant_values=OWN + UNSEEN)
    view, confirmed = own.with_depth(np.pad(view.depth, margin, mode="edge")), np.pad(sure[number].known, margin)
    local = in_camera(planes, own)
    inverse = own.rays() @ local.T
    costs = np.concatenate([matching_costs(own, _others(stills, number), local), cost[..., None]], axis=2)
    with np.errstate(divide="ignore"):
        depths = np.concatenate([1 / inverse, view.depth[..., None]], axis=2)
    within = (depths > near_far[0]) & (depths < near_far[1])
    rows, columns = np.indices(view.depth.shape).reshape(2, -1)
    for label in range(len(planes)):
        place = DepthView(own.K, own.w2c, np.where(within[..., label], depths[..., label], 1.0), view.rgb)
        against = contradictions(sure, place.points(rows, columns)).reshape(view.depth.shape)
        costs[..., label] += AGAINST * against.clip(max=2)
    costs = np.where(within, costs, TOLERANCE + 2 * AGAINST).astype(np.float32)
    chosen = summed_costs(costs, change_costs(own)).argmin(axis=2)
    depth = np.take_along_axis(depths, chosen[..., None], axis=2)[..., 0]
    depth = np.where(within.any(axis=2) & (confirmed | (chosen < len(planes))), depth, 0.0)
    inner = np.s_[margin : margin + stills[number].valid.shape[0], margin : margin + stills[number].valid.shape[1]]
    shown = stills[number].with_depth(np.where(own.valid, depth, 0.0)[inner])
    return shown, own.with_depth(np.where(~own.valid & (chosen < len(planes)), depth, 0.0))
